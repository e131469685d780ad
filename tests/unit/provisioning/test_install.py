"""Installing and removing the services below a folder of the test's own, and the units' hardening."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from killing import every_kill, killed_at
from regatta_agent.process.bytecode import FOLDER_VARIABLE
from regatta_protocol.errors import Misuse
from regatta_provisioning.install import (
    InstallStep,
    Service,
    StepKind,
    apply,
    describe,
    find_program,
    plan_install,
    plan_uninstall,
    uninstall,
    unit_folder,
)

PROGRAM = Path("/opt/regatta/bin/regatta-agent")


def _files(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("service", Service)
def test_install_writes_the_service_and_uninstall_takes_it_away(tmp_path: Path, service: Service) -> None:
    program = Path("/opt/regatta/bin") / service.program
    apply(plan_install(service, program=program), tmp_path)

    files = _files(tmp_path)
    unit = files[f"etc/systemd/system/{service.unit}"]
    assert f"\nExecStart={program} " in unit
    assert "/usr/bin/" not in unit
    assert f"etc/sysusers.d/{service}.conf" in files
    assert f"etc/tmpfiles.d/{service}.conf" in files
    assert {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()} == {0o644}
    uninstall(service, root=tmp_path)
    assert _files(tmp_path) == {}


def test_state_is_kept_unless_purged(tmp_path: Path) -> None:
    state = tmp_path / "var/lib/regatta-agent/identity"
    state.mkdir(parents=True)
    (state / "identity.json").write_text("{}")
    apply(plan_install(program=PROGRAM), tmp_path)
    uninstall(root=tmp_path)
    assert (state / "identity.json").is_file()

    uninstall(root=tmp_path, purge=True)
    assert not state.parent.exists()
    uninstall(root=tmp_path, purge=True)


def test_the_other_service_is_left_alone(tmp_path: Path) -> None:
    apply(plan_install(Service.AGENT, program=PROGRAM), tmp_path)
    agent = _files(tmp_path)
    apply(plan_install(Service.SERVER, program=Path("/opt/regatta/bin/regatta")), tmp_path)
    uninstall(Service.SERVER, root=tmp_path, purge=True)

    assert _files(tmp_path) == agent


def test_a_killed_installation_is_completed_by_the_next(tmp_path: Path) -> None:
    apply(plan_install(program=PROGRAM), tmp_path / "whole")

    def run(point: int) -> None:
        root = tmp_path / str(point)
        try:
            with killed_at(point):
                apply(plan_install(program=PROGRAM), root)
        finally:
            apply(plan_install(program=PROGRAM), root)
            units = {name: text for name, text in _files(root).items() if not name.endswith(".tmp")}
            assert units == _files(tmp_path / "whole")

    assert every_kill(run) >= 8


def test_dry_run_shows_all_and_does_nothing(tmp_path: Path) -> None:
    text = describe(plan_install(program=PROGRAM), tmp_path)

    assert list(tmp_path.iterdir()) == []
    for expected in (
        "/etc/systemd/system/regatta-agent.service",
        "systemctl enable --now regatta-agent.service",
        "systemd-sysusers /etc/sysusers.d/regatta-agent.conf",
        f"    | ExecStart={PROGRAM} run",
    ):
        assert expected in text
    apply(plan_install(program=PROGRAM), tmp_path)
    assert describe(plan_install(program=PROGRAM), tmp_path).count("[in place already]") == 5


def test_the_bytecode_is_compiled_where_the_unit_looks_for_it(tmp_path: Path) -> None:
    """By this Python, before the service starts; and it is gone with the service, which does not own it."""
    steps = plan_install(program=PROGRAM)
    (compiling,) = (step for step in steps if "regatta_agent.process.compiler" in step.command)
    folder = Path(compiling.command[-1])
    apply(steps, tmp_path)
    (tmp_path / folder.relative_to("/") / "0badcafe").mkdir(parents=True)
    uninstall(root=tmp_path)

    assert compiling.command[0] == sys.executable
    assert compiling.may_fail and steps.index(compiling) < len(steps) - 1
    assert f"\nEnvironment={FOLDER_VARIABLE}={folder}\n" in (unit_folder() / "regatta-agent.service").read_text()
    assert not (tmp_path / "var/cache/regatta-agent").exists()


def test_no_program_runs_below_another_root(tmp_path: Path) -> None:
    said: list[str] = []
    apply(plan_install(program=PROGRAM), tmp_path, said.append)

    assert [line for line in said if "systemctl" in line] == [line for line in said if line.startswith("skipped")][-2:]


def test_starting_is_a_choice() -> None:
    def last(steps: list[InstallStep]) -> tuple[str, ...]:
        return steps[-1].command

    assert last(plan_install(program=PROGRAM)) == ("systemctl", "enable", "--now", "regatta-agent.service")
    assert last(plan_install(program=PROGRAM, start="enable")) == ("systemctl", "enable", "regatta-agent.service")
    assert last(plan_install(program=PROGRAM, start="no")) == ("systemctl", "daemon-reload")


def test_a_program_in_a_home_stays_visible_to_its_service(tmp_path: Path) -> None:
    apply(plan_install(program=Path("/home/ada/venv/bin/regatta-agent")), tmp_path)

    assert "\nProtectHome=read-only\n" in (tmp_path / "etc/systemd/system/regatta-agent.service").read_text()


def test_a_program_that_the_services_user_cannot_reach_is_refused(tmp_path: Path) -> None:
    """Before any file is written."""
    program = tmp_path / "closed" / "regatta-agent"
    program.parent.mkdir(mode=0o700)
    program.touch(mode=0o755)
    (check, *_) = plan_install(program=program)

    from regatta_provisioning.install import _carry_out

    assert check.kind is StepKind.CHECK
    with pytest.raises(Misuse, match=r"cannot enter .* /opt/regatta"):
        _carry_out(check, Path("/"))


@pytest.mark.parametrize("name", ["/opt/my programs/regatta-agent", "/opt/100%/regatta-agent", "/opt/$x/regatta-agent"])
def test_a_path_that_systemd_would_read_otherwise_is_refused(name: str) -> None:
    with pytest.raises(Misuse, match="plain letters"):
        plan_install(program=Path(name))


def test_a_program_that_fails_is_named(tmp_path: Path) -> None:
    from regatta_provisioning.install import _execute

    with pytest.raises(Misuse, match=r"status 3: alas"):
        _execute(InstallStep(StepKind.RUN, "try", command=("sh", "-c", "echo alas; exit 3")))
    with pytest.raises(Misuse, match="not on this machine"):
        _execute(InstallStep(StepKind.RUN, "try", command=("regatta-no-such-program",)))
    _execute(InstallStep(StepKind.RUN, "try", command=("regatta-no-such-program",), may_fail=True))


def test_a_file_in_the_way_is_said(tmp_path: Path) -> None:
    (tmp_path / "etc").touch()

    with pytest.raises(Misuse, match="could not do this step"):
        apply(plan_install(program=PROGRAM), tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may install")
def test_installing_needs_root() -> None:
    with pytest.raises(Misuse, match="sudo"):
        apply(plan_uninstall())


def test_a_missing_program_is_said() -> None:
    with pytest.raises(Misuse, match="install regatta-edge"):
        find_program("regatta-no-such-program")


@pytest.mark.parametrize("name", [*(service.unit for service in Service), "regatta-pipeline@.service"])
def test_the_unit_is_hardened(name: str) -> None:
    """systemd's own judgement: an exposure of at most 2.0 of 10 (a bare unit has 9.6)."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("the program systemd-analyze is not installed (apt install systemd)")
    unit = unit_folder() / name
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", str(unit)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-500:] + done.stderr
    verdict = re.search(r"Overall exposure level .*: ([\d.]+)", done.stdout)
    assert verdict is not None
    assert float(verdict[1]) <= 2.0


@pytest.mark.parametrize("service", Service)
def test_systemd_understands_the_unit(tmp_path: Path, service: Service) -> None:
    """It complains of nothing, except (before systemd 254) of the two keys that the unit says it would."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("the program systemd-analyze is not installed (apt install systemd)")
    program = tmp_path / service.program
    program.touch(mode=0o755)
    steps = [step for step in plan_install(service, program=program) if step.path and step.path.suffix == ".service"]
    units = [tmp_path / step.path.name for step in steps if step.path]
    for unit, step in zip(units, steps, strict=True):
        unit.write_bytes(step.content)
    command = ["systemd-analyze", "verify", "--man=no", *map(str, units)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    complaints = [
        line
        for line in done.stderr.splitlines()
        if "regatta" in line and "RestartSteps" not in line and "RestartMaxDelaySec" not in line
    ]
    assert complaints == []


def test_the_agents_unit_leaves_the_runtimes_what_they_need() -> None:
    """Without /proc/cpuinfo and /sys an inference takes three times as long."""
    unit = (unit_folder() / "regatta-agent.service").read_text()

    assert "\nProcSubset=all\n" in unit
    assert "InaccessiblePaths=" not in unit
    assert "\nRestrictAddressFamilies=AF_UNIX AF_INET AF_INET6\n" in unit
    assert "\nOOMPolicy=continue\n" in unit
    assert "\nOOMScoreAdjust=-250\n" in unit
    assert "\nMemoryMax=75%\n" in unit
