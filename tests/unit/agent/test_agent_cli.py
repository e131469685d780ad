"""The device's commands: texts, JSON, exit codes, and what they import."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from click.testing import CliRunner

from device_rig import Rig
from regatta_agent.cli import main
from regatta_agent.cli.commands import COMMANDS, cli
from regatta_agent.cli.run import run as run_command
from regatta_agent.cli.status import span
from regatta_agent.config import AgentConfig, load_config
from regatta_agent.process.daemon import OPTIONS, DaemonOptions, daemon_options
from regatta_agent.status import StateLock
from regatta_agent.work.versions import installed_version
from regatta_protocol import errors
from regatta_protocol.errors import Misuse

_DOCS = Path(__file__).parents[3] / "docs"
_PROGRAM = "from regatta_agent.cli import main; main()"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_a_plain_run_is_told_from_what_click_must_read() -> None:
    """The daemon starts without the command line's library, and takes every option that `run --help` shows."""
    declared = {option for parameter in run_command.params for option in parameter.opts}
    told = daemon_options(["run", "--state-dir", "s", "--config", "c", "--run-dir", "r"])

    assert declared == set(OPTIONS)
    assert told == DaemonOptions(Path("c"), Path("s"), Path("r"))
    assert daemon_options(["run"]) == DaemonOptions()
    for other in ([], ["status"], ["run", "--help"], ["run", "--state-dir"], ["run", "--no", "x"], ["-v", "run"]):
        assert daemon_options(other) is None


def test_what_is_left_out_comes_back_when_it_is_called() -> None:
    """A stand-in costs nothing but time: a library that needs the module after all gets it."""
    code = (
        "import sys; from regatta_agent.process.unloaded import leave_out\n"
        "leave_out(['urllib.request', 'importlib.metadata'])\n"
        "import urllib.request; from importlib.metadata import version\n"
        "assert 'email' not in sys.modules and 'http.client' not in sys.modules\n"
        "print(version('pydantic'), 'email' in sys.modules, urllib.request.url2pathname('/a%20b'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout.split(maxsplit=2) == [metadata.version("pydantic"), "True", "/a b\n"]


def test_an_installed_version_is_what_the_metadata_says() -> None:
    """Read from a folder's name alone, so that the daemon needs no package metadata in memory."""
    assert installed_version("paho-mqtt") == metadata.version("paho-mqtt")
    assert installed_version("typing-extensions") == metadata.version("typing-extensions")
    assert installed_version("no-such-distribution") is None


def test_help_lists_every_command_and_imports_none(capsys: pytest.CaptureFixture[str]) -> None:
    """The overview is quick."""
    status, out, _ = run(capsys, "--help")

    assert status == 0
    assert all(name in out for name in COMMANDS)


@pytest.mark.parametrize("arguments", [("states",), ("--help",), ("config", "check", "--json")])
def test_a_reader_that_has_gone_is_no_error(arguments: tuple[str, ...]) -> None:
    """`regatta-agent why digits | head -1` ends quietly, with the code that shells expect."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, *arguments], stdout=writer, stderr=subprocess.PIPE, timeout=60
        )
    finally:
        os.close(writer)

    assert (done.returncode, done.stderr) == (141, b"")


def test_a_full_disk_under_the_output_is_told_without_a_traceback() -> None:
    """As docs/exit-codes.md says: 74, and no talk of a bug."""
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, "states"], stdout=full, stderr=subprocess.PIPE, timeout=60
        )

    assert done.returncode == 74
    assert done.stderr.splitlines()[0] == b"error: No space left on device"
    assert b"Traceback" not in done.stderr


def test_a_mistyped_command_is_told_what_it_may_mean() -> None:
    """By click, which knows the names and imports none of them."""
    done = CliRunner().invoke(cli, ["rase"])
    assert (done.exit_code, "Did you mean 'race'?" in done.output) == (2, True)


def test_a_file_that_is_no_model_is_not_raced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One error, at once, in place of one from each candidate."""
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    status, out, err = run(capsys, "race", str(tmp_path / "labels.txt"))

    assert (status, out) == (65, "")
    assert "labels.txt begins neither as a TFLite nor as an ONNX model" in err


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"infer"}))
def test_each_command_has_help_with_examples(name: str) -> None:
    """`--help` shows how it is used."""
    group = {"config": "check", "pipeline": "run"}
    arguments = [name, group[name], "--help"] if name in group else [name, "--help"]
    result = CliRunner().invoke(cli, arguments)

    assert result.exit_code == 0
    assert "Examples:" in result.output


def test_every_exit_code_is_documented() -> None:
    """docs/exit-codes.md names each family's code."""
    text = (_DOCS / "exit-codes.md").read_text()
    codes = {getattr(errors, name).exit_code for name in errors.__all__}

    assert codes <= {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}


def test_status_and_why_answer_from_disk_while_no_agent_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both say whether the agent runs; why shows each candidate and the reason of a roll-back."""
    rig = Rig(tmp_path)
    rig.accuracy = {1: 0.98, 2: 0.41}
    rig.start()
    for version in (1, 2):
        rig.fleet.push(version)
        rig.fleet.assign(version, f"r{version}")
        rig.run(12)
    rig.kill()
    folders = ("--state-dir", str(rig.config.state_dir), "--run-dir", str(rig.config.run_dir))

    status, out, _ = run(capsys, "status", *folders)
    assert status == 0
    assert "not running" in out
    assert re.search(r"digits:1 +committed", out)
    status, out, _ = run(capsys, "status", "--json", *folders)
    models = json.loads(out)["models"]
    assert [(m["version"], m["state"]) for m in models] == [(1, "committed"), (2, "rolled_back")]
    status, out, _ = run(capsys, "why", "digits", *folders)
    assert "57 points below digits:1's 0.98" in out
    assert "litert/int8/xnnpack/t1" in out
    status, out, _ = run(capsys, "why", "digits:2", "--json", *folders)
    assert json.loads(out)["race"]["placement"] == "litert/int8/xnnpack/t1"
    status, _, err = run(capsys, "why", "faces", *folders)
    assert (status, err) == (65, "error: model faces is not known here; these are: digits:1, digits:2\n")
    status, _, err = run(capsys, "why", "digits:9", *folders)
    assert (status, "digits:9 is not known here" in err) == (65, True)


def test_a_missing_state_folder_is_told_with_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not enrolled is a set-up error, whoever asks."""
    for command in (("status",), ("why", "digits")):
        status, _, err = run(capsys, *command, "--state-dir", str(tmp_path / "none"))

        assert status == 78
        assert "enroll this device first" in err


def test_run_without_an_identity_ends_with_the_way_to_get_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 78, as systemd's RestartPreventExitStatus wants it."""
    status, _, err = run(capsys, "run", "--state-dir", str(tmp_path), "--run-dir", str(tmp_path / "r"))

    assert status == 78
    assert "not enrolled" in err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("telemetry_perod_s = 1", "telemetry_perod_s"),
        ("max_attempts = 0", "max_attempts"),
        ("max_attempts = ", "is not TOML"),
        ('log_level = "loud"', "log_level"),
        ("[power]\nfactor = 0", "power.factor"),
        (
            "[power]\nsensors = 1",
            "power.sensors: there is no such key; the keys are command, factor, mqtt",
        ),
        (
            '[power.command]\nrun = ["x"]\nperiod = 1',
            "command.period: there is no such key; the keys are coverage",
        ),
        ('[power.mqtt]\nhost = "h"', "power.mqtt.topic"),
        ('[power]\nsensor = "rapl"\ncommand = {run = ["x"]}', "sensor and command are given: keep one"),
        ('update_window = "2-5"', "update_window.*'2-5' is no update window: write for example 02:00-05:00"),
        (
            'update_window = ["02:00-05:00", "sat 03:00-04:00 Mars/Olympus"]',
            "update_window.*no time zone 'Mars/Olympus'",
        ),
        ("update_window = 5", "update_window"),
    ],
)
def test_a_wrong_key_is_named(tmp_path: Path, text: str, words: str) -> None:
    """The file and the key stand in the message."""
    path = tmp_path / "agent.toml"
    path.write_text(text)

    with pytest.raises(Misuse, match=words) as raised:
        load_config(path)
    assert str(path) in str(raised.value)


def test_flags_come_before_environment_before_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of the settings' sources."""
    path = tmp_path / "agent.toml"
    path.write_text('state_dir = "/file"\nrun_dir = "/file"\nmax_attempts = 3')
    monkeypatch.setenv("REGATTA_STATE_DIR", "/environment")
    monkeypatch.setenv("REGATTA_RUN_DIR", "/environment")

    config = load_config(path, {"state_dir": Path("/flag"), "run_dir": None})

    assert (str(config.state_dir), str(config.run_dir), config.max_attempts) == ("/flag", "/environment", 3)
    assert AgentConfig().max_attempts == 8


def test_status_says_for_how_long_the_broker_is_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`offline 3 d`, by a clock that nobody sets; a wait of a clock that was set since is not shown."""
    rig = Rig(tmp_path)
    rig.start()
    rig.fleet.push(1)
    rig.fleet.assign(1)
    rig.run(0.0)
    rig.broker.kill()
    rig.run(1)
    rig.loop.record = rig.loop.record.changed(rig.install(1).ref, not_before=4e9)
    lock = StateLock(rig.config.state_dir)
    lock.take()
    now_s = rig.clock.monotonic() + 3 * 86_400.0
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    folders = ("--state-dir", str(rig.config.state_dir), "--run-dir", str(rig.config.run_dir))

    _, out, _ = run(capsys, "status", *folders)
    assert "broker      not connected for 3 d (the broker is gone): it serves what it has" in out
    assert "(in " not in out
    _, out, _ = run(capsys, "status", "--json", *folders)
    assert json.loads(out)["offline_s"] == pytest.approx(3 * 86_400.0, abs=10)
    lock.release()


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (119.0, "119 s"), (120.0, "2 min"), (7200.0, "2 h"), (3 * 86_400.0, "3 d")]
)
def test_a_time_is_told_in_the_largest_unit_that_says_something(seconds: float, words: str) -> None:
    """Short, and never "1 h" for what may be nearly two."""
    assert span(seconds) == words


def test_a_metered_link_brings_its_own_defaults(tmp_path: Path) -> None:
    """One key sets the profile; a key that is given keeps its value."""
    path = tmp_path / "agent.toml"
    path.write_text('link = "metered"\ntelemetry_period_s = 60')
    config = load_config(path)

    assert (config.telemetry_period_s, config.heartbeat_period_s, config.keepalive_s) == (60.0, 1800.0, 2400)
    assert AgentConfig().keepalive_s == 60


def test_update_windows_are_one_or_several(tmp_path: Path) -> None:
    """As text or as a list; none by default."""
    path = tmp_path / "agent.toml"
    for text, windows in (('"02:00-05:00"', ("02:00-05:00",)), ('["sat 02:00-05:00", "sun 00:00-24:00 UTC"]', None)):
        path.write_text(f"update_window = {text}")
        found = load_config(path).update_window
        assert found == (windows or ("sat 02:00-05:00", "sun 00:00-24:00 UTC"))
    assert AgentConfig().update_window == ()


def test_status_tells_the_window_and_what_waits_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fleet's with its zone, when it opens and in how long; what cannot be read; and the device's own before it."""
    rig = Rig(tmp_path)
    monkeypatch.setattr("time.time", rig.clock.wall)
    rig.start()
    for version in (1, 2):
        rig.fleet.push(version)
        rig.fleet.assign(version, f"r{version}", window=("02:00-05:00 UTC", "at full moon"))
        rig.run(12)
    folders = ("--state-dir", str(rig.config.state_dir), "--run-dir", str(rig.config.run_dir))

    _, out, _ = run(capsys, "status", *folders)
    assert re.search(r"digits:2 +verified .*waits: window opens 02:00 UTC \(in 12 h\)", out)
    assert re.search(
        r"window +02:00-05:00 UTC, at full moon, set by the fleet: opens 02:00 UTC; not waited for: 'a", out
    )
    _, out, _ = run(capsys, "status", "--json", *folders)
    told = json.loads(out)["update_window"]
    assert (told["set_by"], told["opens"]) == ("fleet", "02:00 UTC")
    assert told["opens_at"] == json.loads(out)["models"][1]["opens_at"]
    settings = tmp_path / "agent.toml"
    settings.write_text('update_window = "00:00-24:00"')
    _, out, _ = run(capsys, "status", *folders, "--config", str(settings))
    assert "00:00-24:00, set by the device: updates may be taken into service now" in out
