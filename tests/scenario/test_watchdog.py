"""systemd's watchdog is fed by the loop that really turns, and by nothing else; a start that fails is never ready."""

from __future__ import annotations

import configparser
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from device_rig import Rig
from regatta_provisioning.notify import Notifier
from regatta_provisioning.verifying import AssignmentJob, MetadataJob, VerifyResult

_UNITS = Path(__file__).parents[2] / "systemd"


@contextmanager
def listening(folder: Path) -> Iterator[socket.socket]:
    """Be systemd's end of the socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(folder / "notify"))
        systemd.settimeout(10)
        yield systemd


def drained(systemd: socket.socket) -> list[bytes]:
    """Return what was said until now."""
    said: list[bytes] = []
    systemd.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            said.append(systemd.recv(200))
    systemd.settimeout(10)
    return said


def test_a_loop_that_is_stuck_stops_feeding_the_watchdog(tmp_path: Path) -> None:
    """READY once it serves, then pings; none while a step does not return, whatever other threads do; then again."""
    with listening(tmp_path) as systemd:
        rig = Rig(tmp_path)
        rig.loop._parts = replace(rig.loop._parts, notifier=Notifier(str(tmp_path / "notify"), watchdog_s=0.3))
        stuck, go_on = threading.Event(), threading.Event()
        verify = rig.fleet.verify

        def never_ending(job: AssignmentJob | MetadataJob) -> VerifyResult:
            stuck.set()
            assert go_on.wait(30)
            return verify(job)

        def run() -> None:
            rig.loop.run()
            rig.outbox.close()

        rig.launcher.verify = never_ending
        rig.outbox.close()  # SQLite's connections are for one thread: the loop's opens its own
        loop = threading.Thread(target=run, daemon=True)
        loop.start()
        try:
            assert systemd.recv(200) == b"READY=1"
            assert all(systemd.recv(200).startswith(b"WATCHDOG=1") for _ in range(3))

            rig.fleet.push(1)
            rig.fleet.assign(1)
            assert stuck.wait(10)
            drained(systemd)
            systemd.settimeout(1.0)
            with pytest.raises(TimeoutError):
                systemd.recv(200)

            systemd.settimeout(10)
            go_on.set()
            assert systemd.recv(200).startswith(b"WATCHDOG=1\nSTATUS=generation 1, online")
        finally:
            go_on.set()
            rig.loop.stopping = "the test is over"
            loop.join(20)
        assert not loop.is_alive()
        assert b"STOPPING=1" in drained(systemd)


def test_an_agent_that_cannot_start_never_says_that_it_is_ready(tmp_path: Path) -> None:
    """Without an identity it ends with the way to get one; systemd counts that as a failed start."""
    (tmp_path / "state").mkdir()
    with listening(tmp_path) as systemd:
        done = subprocess.run(
            [sys.executable, "-m", "regatta_agent", "run", "--state-dir", tmp_path / "state", "--run-dir", tmp_path],
            env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")},
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip

        assert done.returncode == 78
        assert "not enrolled" in done.stderr
        assert drained(systemd) == []


@pytest.mark.parametrize("unit", ["regatta-agent.service", "regatta.service"])
def test_the_units_start_again_with_a_back_off_and_for_ever(unit: str) -> None:
    """A program that ends or hangs is started again: after 2 s, up to 5 min apart, and never given up."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(_UNITS / unit)
    service = parser["Service"]

    assert parser["Unit"]["StartLimitIntervalSec"] == "0"
    assert (service["Type"], service["NotifyAccess"], service["Restart"]) == ("notify", "main", "always")
    assert (service["RestartSec"], service["RestartSteps"], service["RestartMaxDelaySec"]) == ("2s", "8", "5min")
    assert service["WatchdogSec"] == "60s"


def test_the_agent_is_started_where_any_of_its_files_is_left() -> None:
    """A lost `identity.json` is mended at a start, and what the record knows is served without it: systemd must try."""
    unit = (_UNITS / "regatta-agent.service").read_text()
    conditions = {line.partition("=")[2] for line in unit.splitlines() if line.startswith("Condition")}

    files = ("identity/identity.json", "identity/identity.sealed", "record.json")
    assert conditions == {f"|/var/lib/regatta-agent/{name}" for name in files}


_TURNING = """
import threading, time
from regatta_agent.process.alarm import armed
def turn():
    time.sleep(0.05)
def hang():
    threading.Event().wait()
with armed(2.0) as alarm:
    for _ in range(45):
        turn()
        alarm.put_off()
    print("turned", flush=True)
    hang()
"""


def test_a_loop_that_hangs_ends_its_process_without_anybody_s_help() -> None:
    """Under no systemd, too: whoever supervises it sees it end, and the log has where it hung."""
    done = subprocess.run([sys.executable, "-c", _TURNING], capture_output=True, text=True, timeout=60)

    assert done.returncode == -signal.SIGALRM
    assert done.stdout == "turned\n", "it was ended while it turned"
    assert "in hang" in done.stderr


def test_each_turn_puts_the_alarm_off(tmp_path: Path) -> None:
    """And nothing else does."""
    rig = Rig(tmp_path).start()
    alarm = mock.Mock()
    rig.loop._parts = replace(rig.loop._parts, alarm=alarm)
    assert alarm.put_off.call_count == 0
    rig.loop.turn(0.0)
    rig.loop.turn(0.0)

    assert alarm.put_off.call_count == 2


def test_an_alarm_ends_when_the_agent_ends_well() -> None:
    """What comes after a clean stop has all the time it needs."""
    arm = "from regatta_agent.process.alarm import armed"
    code = f"import time\n{arm}\nwith armed(0.2): pass\ntime.sleep(0.5); print('well')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stdout) == (0, "well\n")
