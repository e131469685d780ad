"""The `regatta` command over the fake server: what it prints, in tables and JSON, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from regatta_fleet.bundle import write_bundle
from regatta_fleet.cli import exit_codes, main, program
from regatta_fleet.examples.digits import MODEL
from regatta_fleet.schemas import BundleDraft, RolloutState, WaveState
from regatta_fleet.testing import FakeFleet
from regatta_fleet.testing_app import fake_app, serve
from regatta_protocol.ids import Digest, digest_of_bytes
from sample_fleet import harbor

Run = Callable[..., int]
DEADLINE_S = 10.0


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeFleet]:
    found = harbor()
    with serve(fake_app(found)) as url:
        monkeypatch.setenv("REGATTA_URL", url)
        monkeypatch.setenv("REGATTA_TOKEN", found.token)
        yield found


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle whose files are no models: the fake server does not look."""
    files: dict[Digest, Path] = {}

    def file(name: str, data: bytes) -> dict[str, Any]:
        path = tmp_path / name
        path.write_bytes(data)
        files[digest_of_bytes(data)] = path
        return {"digest": digest_of_bytes(data), "size_bytes": len(data)}

    def variant(name: str, size: int, p50_us: float) -> dict[str, Any]:
        latency = {"samples": 100, "p50_us": p50_us, "p90_us": p50_us, "p99_us": p50_us}
        accuracy = {"correct": 340, "total": 360}
        model = file(f"{name}.tflite", bytes(size))
        parts = {"inputs": [], "outputs": [], "latency": latency, "accuracy": accuracy, "steps": ["quantize"]}
        return {"name": name, "precision": name, "file": model, **parts}

    variants = [variant("float32", 4000, 80.0), variant("int8", 1000, 20.0)]
    draft = BundleDraft.model_validate({"variants": variants, "golden": file("golden.npz", b"golden"), "source": "d"})
    write_bundle(tmp_path / "bundle", draft, files)
    return tmp_path / "bundle"


def output(capsys: pytest.CaptureFixture[str], *args: str, code: int = 0) -> str:
    """Run the command; returns its standard output."""
    got = main(args)
    printed = capsys.readouterr()
    assert got == code, printed.err
    assert "Traceback" not in printed.err
    return printed.out


def document(capsys: pytest.CaptureFixture[str], *args: str, code: int = 0) -> Any:
    return json.loads(output(capsys, *args, "--json", code=code))


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
        (["--group", "Lab!"], "Groups are 1 to 64"),
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
    """Without --yes nothing is revoked unasked; end of input is a no."""
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: PTH123, SIM115 - pytest closes it

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


def test_push_of_a_bundle_uploads_what_is_missing(
    fleet: FakeFleet, capsys: pytest.CaptureFixture[str], bundle: Path
) -> None:
    """The next version is made; a second push uploads nothing, and a policy option goes into the draft."""
    text = output(capsys, "model", "push", str(bundle), "--name", "kit")
    uploads = dict(fleet.blobs)
    manifest = document(
        capsys, "model", "push", str(bundle), "--name", "kit", "--objective", "energy", "--accuracy-drop", "1%"
    )

    assert "pushed kit:1" in text
    assert "4.00×" in text
    assert len(uploads) == 3
    assert fleet.blobs == uploads
    assert manifest["version"] == 2
    assert manifest["policy"]["objective"] == "energy"
    assert manifest["policy"]["max_accuracy_drop"] == pytest.approx(0.01)


def test_push_refuses_bad_sources(
    fleet: FakeFleet, capsys: pytest.CaptureFixture[str], bundle: Path, tmp_path: Path
) -> None:
    """A file that is no model, a folder that is no bundle, a damaged bundle: one line each, nothing is pushed."""
    text_file = tmp_path / "notes.tflite"
    text_file.write_text("not a model")
    (tmp_path / "folder").mkdir()
    damaged = next((bundle / "files").iterdir())

    assert main(["model", "push", str(text_file), "--name", "kit"]) == 65
    assert main(["model", "push", str(tmp_path / "folder"), "--name", "kit"]) == 65
    damaged.write_bytes(damaged.read_bytes() + b"x")
    assert main(["model", "push", str(bundle), "--name", "kit"]) == 65
    assert main(["model", "push", str(bundle), "--name", "Kit!"]) == 65
    assert main(["model", "push", str(bundle), "--name", "kit", "--mean", "1"]) == exit_codes.USAGE
    assert main(["model", "push", str(tmp_path / "absent"), "--name", "kit"]) == exit_codes.USAGE
    assert "kit" not in fleet.versions
    assert "Traceback" not in capsys.readouterr().err


def test_push_takes_an_overlay_whole_or_not_at_all(
    fleet: FakeFleet, capsys: pytest.CaptureFixture[str], bundle: Path, tmp_path: Path
) -> None:
    """Its files are uploaded with the model's; options that belong together are asked for, and never half taken."""
    (tmp_path / "bits.bin").write_bytes(b"bits")
    bits, model = str(tmp_path / "bits.bin"), str(MODEL)
    wrong = (
        (model, "--overlay", "dpu"),
        (model, "--bitstream", bits),
        (model, "--overlay", "dpu", "--bitstream", bits),
        (model, "--overlay", "dpu", "--bitstream", bits, "--overlay-delegate", "mine", "--overlay-flags", "x"),
        (str(bundle), "--overlay", "dpu", "--bitstream", bits, "--overlay-delegate", "mine"),
    )
    for options in wrong:
        assert main(["model", "push", *options, "--name", "kit"]) == exit_codes.USAGE, options
    assert "kit" not in fleet.versions

    right = ("--overlay", "dpu", "--bitstream", bits, "--overlay-delegate", "mine", "--overlay-flags", "0x21")
    manifest = document(capsys, "model", "push", model, *right, "--name", "kit")

    overlay = manifest["variants"][1]["overlay"]
    assert (overlay["name"], overlay["delegate"], overlay["flags"]) == ("dpu", "mine", 0x21)
    assert overlay["bitstream"]["digest"] in fleet.blobs
    assert "dpu for mine, bitstream 4 B" in output(capsys, "model", "show", "kit")


def test_model_show_takes_the_newest(fleet: FakeFleet, capsys: pytest.CaptureFixture[str], bundle: Path) -> None:
    """Without a version the newest is shown, with its variants and devices."""
    for _ in range(2):
        output(capsys, "model", "push", str(bundle), "--name", "kit")

    assert "Model kit:2" in output(capsys, "model", "show", "kit")
    assert document(capsys, "model", "show", "kit:1")["manifest"]["version"] == 1
    assert "kit" in output(capsys, "model", "list")


def _follow(fleet: FakeFleet, decisions: list[tuple[RolloutState, str, int, WaveState]]) -> threading.Thread:
    """Decide the rollout that is about to begin, step by step, as a gate would."""
    known = set(fleet.rollouts)

    def decide() -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not (new := set(fleet.rollouts) - known):
            if time.monotonic() > deadline:
                return
            time.sleep(0.01)
        for state, reason, wave, wave_state in decisions:
            fleet.decide(new.copy().pop(), state, reason, wave, wave_state)

    thread = threading.Thread(target=decide, daemon=True)
    thread.start()
    return thread


@pytest.fixture
def pushed(
    fleet: FakeFleet, capsys: pytest.CaptureFixture[str], bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> FakeFleet:
    monkeypatch.setattr("regatta_fleet.cli.rollout._FOLLOW_PERIOD_S", 0.02)
    output(capsys, "model", "push", str(bundle), "--name", "kit")
    return fleet


def test_rollout_start_sends_what_was_asked(pushed: FakeFleet, capsys: pytest.CaptureFixture[str]) -> None:
    """Cohort, waves, gate and trial arrive at the server."""
    options = ["--to", "quay-1,quay-2", "--to", "crane-1", "--waves", "10%,100%", "--trial", "2s"]
    begun = document(
        capsys, "rollout", "start", "kit:1", *options, "--gate", "accuracy-drop=1%", "--gate", "on-failure=hold"
    )

    assert [wave["devices"] for wave in begun["waves"]] == [["crane-1"], ["quay-1", "quay-2"]]
    assert begun["gate"]["max_accuracy_drop"] == pytest.approx(0.01)
    assert begun["gate"]["on_failure"] == "hold"


def test_waiting_for_a_good_rollout_ends_with_0(pushed: FakeFleet, capsys: pytest.CaptureFixture[str]) -> None:
    """Each decided wave is one line, and none is said twice."""
    _follow(
        pushed,
        [
            (RolloutState.RUNNING, "1 of 1 succeeded", 1, WaveState.PROMOTED),
            (RolloutState.COMPLETED, "all waves passed", 2, WaveState.PROMOTED),
        ],
    )

    lines = output(capsys, "rollout", "start", "kit:1", "--waves", "20%,100%", "--wait").splitlines()

    assert "wave 1 of 2: promoted: 1 of 1 succeeded" in lines
    assert lines[-1].endswith("completed: all waves passed")
    assert len(lines) == len(set(lines))


def test_waiting_for_a_bad_rollout_ends_with_3(pushed: FakeFleet, capsys: pytest.CaptureFixture[str]) -> None:
    """The gate's reason is shown."""
    _follow(pushed, [(RolloutState.ROLLED_BACK, "accuracy fell by 35.3 points", 1, WaveState.FAILED)])

    text = output(capsys, "rollout", "start", "kit:1", "--wait", code=exit_codes.NOT_COMPLETED)

    assert "rolled back: accuracy fell by 35.3 points" in text


def test_waiting_for_a_held_rollout_ends_with_4(pushed: FakeFleet, capsys: pytest.CaptureFixture[str]) -> None:
    """With --json only the last state is printed."""
    _follow(pushed, [(RolloutState.HELD, "p99 is 3.1 times as high", 1, WaveState.FAILED)])

    found = document(capsys, "rollout", "start", "kit:1", "--wait", code=exit_codes.HELD)

    assert found["state"] == "held"
    assert "promoted by the operator" in output(capsys, "rollout", "promote", found["id"])
    assert document(capsys, "rollout", "abort", found["id"])["state"] == "aborted"
    assert main(["rollout", "abort", found["id"]]) == 65


def test_waiting_has_an_end(pushed: FakeFleet, capsys: pytest.CaptureFixture[str]) -> None:
    """--timeout ends the waiting, not the rollout."""
    assert main(["rollout", "start", "kit:1", "--wait", "--timeout", "100ms"]) == 75
    assert "it goes on by itself" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["kit"], 65),
        (["kit:0"], 65),
        (["kit:7"], 65),
        (["kit:1", "--to", "Nobody!"], 65),
        (["kit:1", "--to", "group:none"], 65),
        (["kit:1", "--waves", "50%,10%"], 2),
        (["kit:1", "--gate", "speed=1"], 2),
        (["kit:1", "--trial", "soon"], 2),
    ],
)
def test_wrong_rollouts_are_refused(
    pushed: FakeFleet, capsys: pytest.CaptureFixture[str], args: list[str], code: int
) -> None:
    """Each with one clear line and its exit code; no rollout begins."""
    before = len(pushed.rollouts)

    assert main(["rollout", "start", *args]) == code
    assert len(pushed.rollouts) == before
    assert "Traceback" not in capsys.readouterr().err


def test_rollout_show_has_the_gates_words(fleet: FakeFleet, capsys: pytest.CaptureFixture[str]) -> None:
    """Waves with their reasons, and the gate's limits; the list is newest first."""
    text = output(capsys, "rollout", "show", "r-2")

    assert "accuracy fell by 35.3 points on crane-1" in text
    assert "accuracy drop ≤ 2.0 %" in text
    assert [one["id"] for one in document(capsys, "rollout", "list")] == ["r-3", "r-2", "r-1"]


def test_a_wave_that_waits_for_windows_says_so(fleet: FakeFleet, capsys: pytest.CaptureFixture[str]) -> None:
    """Which devices, until when and in which time zone; so does a rollout that is followed, once."""
    words = "1 of 2 devices in no update window yet: quay-1 (waits: window opens 02:00 CET)"
    old = fleet.rollouts["r-3"]
    waiting = old.waves[0].model_copy(update={"state": WaveState.OBSERVING, "waiting": 1, "reason": words})
    fleet.rollouts["r-3"] = old.model_copy(
        update={"state": RolloutState.RUNNING, "waves": (waiting, *old.waves[1:]), "ignore_window": False}
    )

    assert words in output(capsys, "rollout", "show", "r-3")
    assert main(["rollout", "show", "r-3", "--wait", "--timeout", "10ms"]) == 75
    assert capsys.readouterr().out.count(words) == 1


def test_an_urgent_rollout_is_told_as_such(pushed: FakeFleet, capsys: pytest.CaptureFixture[str]) -> None:
    """The override arrives at the server, and `show` tells of it."""
    begun = document(capsys, "rollout", "start", "kit:1", "--ignore-window")
    ordinary = document(capsys, "rollout", "start", "kit:1")

    assert (begun["ignore_window"], ordinary["ignore_window"]) == (True, False)
    assert "update windows are not waited for" in output(capsys, "rollout", "show", begun["id"])


def test_events_are_listed(fleet: FakeFleet, capsys: pytest.CaptureFixture[str]) -> None:
    """Oldest first."""
    lines = output(capsys, "events").splitlines()

    assert "enrolled with a one-time token" in lines[1]
    assert len(document(capsys, "events")) == 5


def test_followed_events_come_once_each(fleet: FakeFleet) -> None:
    """New events are printed as they happen, one JSON document a line, and Ctrl-C ends it with 130."""
    command = [sys.executable, "-c", "import sys; from regatta_fleet.cli import main; sys.exit(main())"]
    process = subprocess.Popen(
        [*command, "events", "--follow", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job ignores SIGINT, and so would all that the tests start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    first = [json.loads(process.stdout.readline()) for _ in range(5)]
    fleet.say("note", "something new")
    then = json.loads(process.stdout.readline())
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=DEADLINE_S)

    assert [event["kind"] for event in first] == ["enrolled", "model", "rollout", "race", "gate"]
    assert then["text"] == "something new"
    assert process.returncode == exit_codes.INTERRUPTED
    assert "Traceback" not in errors


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


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each shell gets a script that asks this program."""
    assert "_REGATTA_COMPLETE" in output(capsys, "completion", shell)


def test_completion_answers() -> None:
    """`regatta roll<TAB>` completes without importing the command."""
    environment = {**os.environ, "_REGATTA_COMPLETE": "bash_complete", "COMP_WORDS": "regatta roll", "COMP_CWORD": "1"}

    done = subprocess.run(
        [sys.executable, "-c", "from regatta_fleet.cli import main; main([])"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )

    assert done.stdout.split() == ["plain,rollout"]


def test_help_imports_nothing_heavy() -> None:
    """`regatta --help` stays quick: no pydantic, requests, rich or server is loaded (measured: 0.1 s)."""
    code = (
        "import sys; from regatta_fleet.cli import main; main(['--help']); "
        "heavy = {'pydantic', 'requests', 'rich', 'fastapi', 'numpy', 'sqlalchemy', 'jinja2'} & set(sys.modules); "
        "sys.exit(','.join(heavy) or 0)"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE_S)

    assert done.returncode == 0, done.stderr
    assert "rollout" in done.stdout


def _commands(group: click.Group, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group, info_name=path[-1] if path else "regatta")
    for name in group.list_commands(context):
        if name == "demo":
            continue  # the demo comes with its own tests
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from _commands(command, *path, name)


COMMANDS = list(_commands(program))


@pytest.mark.parametrize("path", [path for path, _ in COMMANDS], ids=" ".join)
def test_every_command_explains_itself(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """--help works, and every command that does something has examples and, where it prints results, --json."""
    command = dict(COMMANDS)[path]

    text = output(capsys, *path, "--help")

    assert command.help
    if not isinstance(command, click.Group):
        assert "Examples:" in text
        assert "--json" in text or path == ("completion",)
        assert all(option.help for option in command.params if isinstance(option, click.Option))


def test_the_overview_says_what_the_commands_say() -> None:
    """The lines that `regatta --help` shows without importing are the commands' own."""
    from regatta_fleet.cli import _COMMANDS

    for path, command in COMMANDS:
        if len(path) == 1:
            assert (command.help or "").splitlines()[0] == _COMMANDS[path[0]][2]


def test_wrong_usage_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown command or option is named."""
    assert main(["rolout"]) == exit_codes.USAGE
    assert main(["status", "--jason"]) == exit_codes.USAGE
    assert "--jason" in capsys.readouterr().err
