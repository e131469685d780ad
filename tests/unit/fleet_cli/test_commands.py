"""The `regatta` command over the fake fleet: devices, policies and windows as tables and JSON, and how it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fleet_command import DEADLINE_S, document, output
from regatta_fleet.cli import exit_codes, main
from regatta_fleet.testing import FakeFleet
from regatta_protocol.errors import Rejected


def test_status_shows_the_fleet(fleet: FakeFleet, capsys: pytest.CaptureFixture[str]) -> None:
    """Devices, models and rollouts are in plain tables when standard output is no terminal."""
    text = output(capsys, "status")

    assert "Fleet harbor: 4 of 5 devices up" in text
    assert "litert/int8-pruned/xnnpack/t2" in text
    assert "down, 13 min ago" in text
    assert "rolled back" in text
    assert "\x1b[" not in text


def test_status_as_json_is_the_servers(fleet: FakeFleet, capsys: pytest.CaptureFixture[str]) -> None:
    """--json prints the API's shape, unknown power with its reason included."""
    found = document(capsys, "status")

    buoy = next(device for device in found["devices"] if device["id"] == "buoy-1")
    assert buoy["models"][0]["power"]["power_mw"] is None
    assert "no power sensor" in buoy["models"][0]["power"]["reason"]


def test_an_empty_fleet_says_what_to_do(fleet: FakeFleet, capsys: pytest.CaptureFixture[str]) -> None:
    """Empty tables name the next command."""
    fleet.devices.clear()
    fleet.versions.clear()
    fleet.rollouts.clear()

    text = output(capsys, "status")

    assert "regatta device token" in text
    assert "regatta model push" in text
    assert "regatta rollout start" in text


def test_token_alone_goes_to_standard_output(fleet: FakeFleet, capsys: pytest.CaptureFixture[str]) -> None:
    """Scripts read the token; the hint is on standard error."""
    code = main(["device", "token", "--device", "cam-1", "--group", "lab", "--valid", "10m"])
    printed = capsys.readouterr()

    assert code == 0
    assert printed.out.startswith("rgt-")
    assert len(printed.out.split()) == 1
    assert "regatta-agent enroll" in printed.err
    assert (fleet.tokens[0].device, fleet.tokens[0].group, fleet.tokens[0].valid_s) == ("cam-1", "lab", 600.0)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--device", "Cam 1"], "device id 'Cam 1' is not valid"),
        (["--group", "Lab!"], "group 'Lab!' is not valid: groups are 1 to 64"),
        (["--valid", "60d"], "at most 30d"),
    ],
)
def test_impossible_tokens_are_refused_here(
    fleet: FakeFleet, capsys: pytest.CaptureFixture[str], args: list[str], words: str
) -> None:
    """A wrong id, group or time is told before the server is asked."""
    assert main(["device", "token", *args]) == 65
    assert words in capsys.readouterr().err
    assert not fleet.tokens


def test_device_show_tells_each_candidate_why(fleet: FakeFleet, capsys: pytest.CaptureFixture[str]) -> None:
    """The board, the models with reasons, and the race with every loser's reason."""
    text = output(capsys, "device", "show", "quay-1")

    assert "  board         Raspberry Pi 5" in text
    assert "184 KB over MQTT" in text
    assert "Race of digits:1" in text
    assert "signal 11 in libedgetpu.so.1" in text
    assert "1.44× the placed one's p50" in text
    assert document(capsys, "device", "show", "quay-1")["races"][0]["placement"] == "litert/int8-pruned/xnnpack/t2"


def test_device_list_chooses_a_group(fleet: FakeFleet, capsys: pytest.CaptureFixture[str]) -> None:
    """--group leaves the others out."""
    assert [device["id"] for device in document(capsys, "device", "list", "--group", "sea")] == ["buoy-1"]
    assert "buoy-1" not in output(capsys, "device", "list", "--group", "default")


def test_a_policy_is_set_shown_and_cleared(fleet: FakeFleet, capsys: pytest.CaptureFixture[str]) -> None:
    """What was given and nothing else; `none` lifts a limit; the table shows the options that set it."""
    arguments = ("--objective", "energy", "--max-p99", "5ms", "--max-memory", "none")
    text = output(capsys, "policy", "set", "sea", "--model", "digits", *arguments)
    set_for_all = document(capsys, "policy", "set", "all", "--accuracy-drop", "1%")
    shown = document(capsys, "policy", "show")

    assert text.startswith("group sea, model digits: --objective energy --max-p99 5ms --max-memory none")
    assert set_for_all["policy"] == {"max_accuracy_drop": 0.01}
    assert [(one["group"], one.get("model")) for one in shown["policies"]] == [("all", None), ("sea", "digits")]
    assert shown["policies"][1]["policy"] == {"objective": "energy", "max_p99_us": 5000, "max_memory_bytes": None}
    assert "--accuracy-drop 1%" in output(capsys, "policy", "show", "all")
    assert output(capsys, "policy", "clear", "all") == "all devices: cleared\n"
    assert "--accuracy-drop" not in output(capsys, "policy", "show")


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("set", "sea"), 2, "give what the policy shall be"),
        (("set", "sea", "--max-p99", "5"), 2, "500us, 5ms"),
        (("set", "sea", "--model", "nothing", "--objective", "energy"), 65, "there is no model nothing"),
        (("clear", "sea"), 65, "no policy is set for"),
    ],
)
def test_a_policy_that_cannot_be_is_refused(
    fleet: FakeFleet, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], status: int, words: str
) -> None:
    """With what is wrong and what to do; nothing is set."""
    assert main(["policy", *arguments]) == status
    assert words in capsys.readouterr().err
    assert not fleet.policies


def test_update_windows_are_set_shown_and_cleared(fleet: FakeFleet, capsys: pytest.CaptureFixture[str]) -> None:
    """For a group and for all, several at once; the table shows them as they were written."""
    text = output(capsys, "window", "set", "shops", "mon-sat 22:00-05:00 Europe/Berlin", "sun 00:00-24:00")
    set_for_all = document(capsys, "window", "set", "all", "02:00-05:00")

    assert text.startswith("group shops: mon-sat 22:00-05:00 Europe/Berlin, sun 00:00-24:00\n")
    assert set_for_all["windows"] == ["02:00-05:00"]
    assert "02:00-05:00" in output(capsys, "window", "show", "all")
    assert "Berlin" not in output(capsys, "window", "show", "all")
    assert output(capsys, "window", "clear", "shops") == "group shops: cleared\n"
    assert list(fleet.windows) == ["all"]


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("set", "shops"), 2, "Missing argument"),
        (("set", "shops", "2-5"), 65, "write for example 02:00-05:00"),
        (("set", "shops", "02:00-05:00 Mars/Olympus"), 65, "no time zone"),
        (("set", "shops", *["02:00-05:00"] * 17), 65, "at most 16"),
        (("clear", "shops"), 65, "no update window is set"),
    ],
)
def test_an_update_window_that_cannot_be_is_refused(
    fleet: FakeFleet, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], status: int, words: str
) -> None:
    """Before the server is asked, where that can be; nothing is set."""
    assert main(["window", *arguments]) == status
    assert words in capsys.readouterr().err
    assert not fleet.windows


def test_revoke_asks_first(
    fleet: FakeFleet, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --yes nothing is revoked unasked; end of input is a no, and a device that is not there no question."""
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: PTH123, SIM115 - pytest closes it

    assert main(["device", "revoke", "bouy-1"]) == Rejected.exit_code
    assert "Revoke" not in capsys.readouterr().err
    assert main(["device", "revoke", "buoy-1"]) == exit_codes.INTERRUPTED
    assert not fleet.devices["buoy-1"].revoked

    capsys.readouterr()
    assert output(capsys, "device", "revoke", "buoy-1", "--yes") == "buoy-1 is revoked\n"
    assert fleet.devices["buoy-1"].revoked


def test_hostile_text_does_not_reach_the_terminal(fleet: FakeFleet, capsys: pytest.CaptureFixture[str]) -> None:
    """A device's reason with escape sequences is defused in every table."""
    quay = fleet.devices["quay-1"]
    evil = quay.models[0].model_copy(update={"reason": "\x1b]0;owned\x07\x1b[2J\nfake line", "placement": "a\rb"})
    fleet.add_device(quay.model_copy(update={"models": (evil,)}))

    text = output(capsys, "device", "show", "quay-1") + output(capsys, "status")

    assert "\x1b" not in text
    assert "\x07" not in text
    assert "\r" not in text


def test_no_server_says_how_to_start_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An empty home, exit code 75."""
    assert main(["status", "--home", str(tmp_path)]) == 75
    assert "start one with `regatta up`" in capsys.readouterr().err


def test_a_wrong_token_has_its_own_code(
    fleet: FakeFleet, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """77, without showing the token; a URL without any token is a set-up that cannot work."""
    monkeypatch.setenv("REGATTA_TOKEN", "wrong-secret")
    assert main(["status"]) == 77
    assert "wrong-secret" not in capsys.readouterr().err

    monkeypatch.delenv("REGATTA_TOKEN")
    assert main(["status"]) == 78


def test_a_bug_is_one_line(
    fleet: FakeFleet, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unexpected errors end with 70 and no traceback, unless it is asked for."""
    monkeypatch.setattr("regatta_fleet.client.FleetClient.status", lambda self: 1 / 0)

    assert main(["status"]) == exit_codes.BUG
    printed = capsys.readouterr().err
    assert "ZeroDivisionError" in printed
    assert "Traceback" not in printed

    monkeypatch.setenv(exit_codes.DEBUG_VARIABLE, "1")
    main(["status"])
    assert "Traceback" in capsys.readouterr().err


def test_a_closed_pipe_is_no_error(fleet: FakeFleet) -> None:
    """`regatta events | head -1` ends quietly, with the code that shells expect."""
    for number in range(3000):
        fleet.events.append(fleet.events[0].model_copy(update={"text": f"{number} " + "x" * 100}))
    command = f"{sys.executable} -c 'import sys; from regatta_fleet.cli import main; sys.exit(main())' events | head -1"

    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=DEADLINE_S)

    assert done.returncode == exit_codes.READER_GONE
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1
