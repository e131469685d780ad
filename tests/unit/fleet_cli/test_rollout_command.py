"""`regatta rollout` and `events` over the fake fleet: what is sent, followed and told, and how waiting ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fleet_command import DEADLINE_S, document, output
from regatta_fleet.cli import exit_codes, main
from regatta_fleet.schemas import RolloutState, WaveState
from regatta_fleet.testing import FakeFleet


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
