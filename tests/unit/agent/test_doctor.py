"""`regatta-agent doctor`: over recorded boards and over this machine."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric import ec

from board_trees import lay_out, tree_text
from regatta_agent.cli import doctor
from regatta_agent.cli.commands import cli
from regatta_agent.cli.finding import Finding, print_findings
from regatta_agent.cli.hardware import User, access_fix, describe_accelerators, describe_heat
from regatta_agent.config import AgentConfig
from regatta_protocol.errors import Rejected
from regatta_protocol.ids import DeviceId
from regatta_protocol.measurement import BoardFacts
from regatta_provisioning.authority import Authority
from regatta_provisioning.identity import IdentityFile, put_identity
from regatta_provisioning.keys import make_csr, write_private_key
from regatta_runtimes.board.accelerators import Accelerator, Signs
from regatta_runtimes.board.probe import probe_board

ME = User("me", 1000, frozenset({1000, 44}))


def _doctor(tmp_path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(
        cli, ["doctor", "--state-dir", str(tmp_path / "state"), "--run-dir", str(tmp_path / "run"), *arguments]
    )


def _findings(result: Result) -> dict[tuple[str, str], dict[str, str]]:
    document = json.loads(result.stdout)
    return {(finding["group"], finding["subject"]): finding for finding in document["findings"]}


def test_a_board_is_described_with_what_it_lacks_and_how_to_get_it(tmp_path: Path) -> None:
    """An RK3588 without Teflon: the NPU's driver, the missing library, the package that has it."""
    root = lay_out(tree_text("rk3588"), tmp_path / "board")

    result = _doctor(tmp_path, "--json", "--sysroot", str(root))

    findings = _findings(result)
    assert findings["Board", "model"]["text"] == "Radxa ROCK 5B"
    assert findings["Board", "processor"]["text"] == "4x Cortex-A55, 4x Cortex-A76 (aarch64), 8 cores"
    assert findings["Board", "memory"]["text"] == "15.6 GiB"
    assert "driver rocket of kernel 6.18.1-arm64; /dev/accel/accel0" in findings["Accelerators", "rocket"]["text"]
    assert (findings["Delegates", "teflon"]["level"], findings["Delegates", "teflon"]["text"]) == (
        "note",
        "missing for rocket: libteflon.so",
    )
    assert "mesa-teflon-delegate" in findings["Delegates", "teflon"]["fix"]
    assert "no power sensor" in findings["Power and heat", "power"]["text"]
    assert json.loads(result.stdout)["board"]["accelerators"] == ["gpu", "rocket"]


def test_the_runtimes_are_tried_and_a_problem_sets_the_exit_code(tmp_path: Path) -> None:
    """LiteRT ran the probe model here; the device that is not enrolled is what stops the agent."""
    result = _doctor(tmp_path, "--json")

    assert "runs the probe model" in _findings(result)["Runtimes", "litert"]["text"]
    assert json.loads(result.stdout)["problems"] == ["identity"]
    assert isinstance(result.exception, Rejected)
    assert result.exception.exit_code == 65


def test_the_text_is_grouped_and_names_each_fix(tmp_path: Path) -> None:
    """Board first, what the agent needs last; an arrow before what to do."""
    root = lay_out(tree_text("imx93"), tmp_path / "board")

    text = _doctor(tmp_path, "--sysroot", str(root)).stdout

    groups = [line for line in text.splitlines() if line and not line.startswith(" ")]
    assert groups == ["Board", "Accelerators", "Delegates", "Drivers", "Power and heat", "Runtimes", "Agent"]
    assert "→ add libethosu_delegate.so from NXP's BSP" in text


def test_a_broken_package_of_delegates_is_told(tmp_path: Path) -> None:
    """A file in /etc/regatta/delegates.d that is wrong."""
    root = lay_out(tree_text("pc"), tmp_path / "board")
    folder = root / "etc/regatta/delegates.d"
    folder.mkdir(parents=True)
    (folder / "mine.toml").write_text("[mine")

    findings = _findings(_doctor(tmp_path, "--json", "--sysroot", str(root)))

    assert "mine.toml cannot be read" in findings["Delegates", "left out"]["text"]


def test_a_record_can_be_examined_again(tmp_path: Path) -> None:
    """--record writes a tree that gives the same facts on another machine; nothing else is examined."""
    root = lay_out(tree_text("jetson-orin"), tmp_path / "board")

    result = _doctor(tmp_path, "--sysroot", str(root), "--record", str(tmp_path / "my.tree"))

    assert (result.exit_code, result.stdout) == (0, "")
    again = lay_out((tmp_path / "my.tree").read_text(), tmp_path / "again")
    assert probe_board(again) == probe_board(root)
    assert probe_board(again).accelerators


@pytest.mark.parametrize("target", ["", "gone/my.tree"])
def test_a_record_that_cannot_be_written_is_refused(tmp_path: Path, target: str) -> None:
    """A folder, and a path without its folder, are told by name."""
    result = _doctor(tmp_path, "--record", str(tmp_path / target))

    assert result.exit_code != 0
    assert str(tmp_path / target) in f"{result.exception}{result.output}"


@pytest.mark.parametrize(
    ("mode", "owner", "group", "allowed"),
    [
        (0o660, 0, 44, True),
        (0o660, 0, 0, False),
        (0o600, 1000, 0, True),
        (0o640, 0, 44, False),
        (0o666, 0, 0, True),
        (0o606, 0, 44, False),  # the group's bits count for its members, and they say no
    ],
)
def test_permission_bits(mode: int, owner: int, group: int, allowed: bool) -> None:
    """Owner, then group, then others, as the kernel looks at them; root always."""
    assert ME.may_use(mode, owner, group) is allowed
    assert User("root", 0, frozenset({0})).may_use(mode, owner, group)


def test_a_node_that_is_closed_names_its_group_or_a_rule(tmp_path: Path) -> None:
    """The group that may use it; a udev rule when only root may; our own rules for a Coral."""
    node = tmp_path / "dev/galcore"
    node.parent.mkdir()
    node.touch()
    node.chmod(0o600)
    stranger = User("regatta-agent", os.getuid() + 1, frozenset())

    (found,) = describe_accelerators(BoardFacts(), [Accelerator("imx8mp-npu", (node,))], [], {}, stranger)[:1]

    assert (found.level, found.text) == ("note", "found; /dev/galcore: regatta-agent may not use /dev/galcore")
    assert found.fix is not None and 'KERNEL=="galcore", GROUP="regatta-agent", MODE="0660"' in found.fix
    assert "regatta-agent install" in access_fix(node, "coral-pcie", stranger)


def test_a_node_of_a_group_is_opened_by_joining_it(tmp_path: Path) -> None:
    """Render nodes belong to `render`, as everywhere."""
    node = tmp_path / "renderD128"
    node.touch()
    node.chmod(0o660)
    if os.getuid() != 0 and node.stat().st_gid == 0:
        pytest.skip("this user's files belong to root's group")
    if os.getuid() == 0:
        os.chown(node, 0, 44)

    assert access_fix(node, "gpu", ME).startswith("sudo usermod -aG ")


def test_an_accelerator_without_its_node_says_what_to_do() -> None:
    """A Coral on PCIe whose kernel driver is not installed; an accelerator that no delegate serves."""
    findings = describe_accelerators(
        BoardFacts(),
        [Accelerator("coral-pcie"), Accelerator("mynpu")],
        [],
        {"mynpu": Signs(node_hint="load mynpu")},
        ME,
    )

    assert [(one.group, one.subject) for one in findings] == [
        ("Accelerators", "coral-pcie"),
        ("Accelerators", "mynpu"),
        ("Delegates", "coral-pcie"),
        ("Delegates", "mynpu"),
    ]
    assert "gasket-dkms" in (findings[0].fix or "")
    assert findings[1].fix == "load mynpu"


@pytest.mark.parametrize(("throttled", "level"), [(True, "note"), (False, "ok"), (None, "note")])
def test_throttling_is_said_with_the_clock_as_a_hint(throttled: bool | None, level: str) -> None:
    """Unknown is not "none"."""
    found = describe_heat(BoardFacts(throttled=throttled), 0.5)[-1]

    assert found.level == level
    assert "50% of its maximum" in found.text
    assert (found.fix is not None) is (throttled is True)


def test_damaged_files_of_the_identity_are_named(tmp_path: Path) -> None:
    """With what mends them; a certificate that cannot be read is no reason to say more."""
    folder = tmp_path / "state" / "identity"
    folder.mkdir(parents=True)
    authority, key = Authority.create(tmp_path / "authority", "lab"), ec.generate_private_key(ec.SECP256R1())
    write_private_key(folder / "key.pem", key)
    certificate = authority.sign_device_csr(make_csr(key, "pi-1"), DeviceId("pi-1"))
    file = IdentityFile(
        fleet="lab", device=DeviceId("pi-1"), broker_host="fleet", broker_port=8883, api_url="https://fleet",
        assignment_key="AAAA", assignment_key_id="00",
        key="key.pem", certificate="cert.pem", ca="ca.pem", root="root.json",
    )  # fmt: skip
    put_identity(
        folder, file, {"cert.pem": certificate.encode(), "ca.pem": authority.ca_pem.encode(), "root.json": b"{}"}
    )
    config = AgentConfig(state_dir=tmp_path / "state")
    assert [one.level for one in doctor._identity(config)] == ["ok", "ok"]
    (folder / "cert.pem").write_bytes(b"")

    (found,) = doctor._identity(config)
    assert (found.level, found.fix) == ("note", "start the agent again: it mends them")
    assert "pi-1 of lab" in found.text and "damaged or missing: cert.pem" in found.text


def test_long_texts_are_wrapped_below_their_column(capsys: pytest.CaptureFixture[str]) -> None:
    """No line is wider than the terminal, and a path is never broken."""
    path = "/usr/lib/aarch64-linux-gnu/libedgetpu.so.1"
    print_findings([Finding("G", "subject", "note", f"{'word ' * 20}{path}", "do this " * 20)], 80)

    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines) <= 80
    assert path in "".join(lines)
    assert {len(line) - len(line.lstrip()) for line in lines[2:]} <= {20, 22}
