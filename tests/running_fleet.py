"""The programs of a fleet with the real Mosquitto, as a user starts them, to be killed: `regatta up` and two agents.

The broker and the serving workers are children, which their parents start again; the server and the agents are
started again by the test, as systemd would.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from polling import wait_until
from regatta_agent.client import Client
from regatta_agent.core.states import IN_PROGRESS
from regatta_agent.disk.record import RecordFile
from regatta_fleet.cli.connection import open_client
from regatta_fleet.schemas import RolloutDetail, RolloutState
from regatta_protocol.errors import RegattaError, Retryable
from regatta_protocol.ids import ModelName, ModelRef
from regatta_protocol.messages import InstallState
from tiny_models import write_tiny_model

__all__ = ["DEADLINE_S", "DEVICES", "LOADED_SIDE", "MODEL", "THEN", "RunningFleet"]

DEVICES = ("quay-1", "quay-2")
MODEL = ModelName("tiny")
# A small race, and short waits: this is about survival.
_AGENT_CONFIG = "race_threads = [1]\nrace_budget_s = 2\ntelemetry_period_s = 0.5\nbackoff_base_s = 0.2\n"
DEADLINE_S = 150.0  # of each wait: a rollout takes 4 s alone on the machine, and it may have eight others on it
_GLANCES = 5  # at a state that is over in a second: the test itself may have to wait for the processor as long
LOADED_SIDE = 48  # 3.7 MB: long enough on the wire to be met there
_ROAD = (
    InstallState.DOWNLOADING, InstallState.VERIFIED, InstallState.RACING, InstallState.PLACED, InstallState.ON_TRIAL,
    InstallState.COMMITTED,
)  # fmt: skip
THEN = {state: _ROAD[place:] for place, state in enumerate(_ROAD)}  # a state, and those that follow


class RunningFleet:
    """The programs of a fleet by name, and what each of them shows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "fleet"
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._versions = 0
        self.environments: dict[str, dict[str, str]] = {}  # of programs by name: what theirs has beside the test's
        (folder / "in").mkdir()
        allowed = f'batch_folder = "{folder}/out"\nbatch_inputs = ["{folder}/in"]\n'
        (folder / "agent.toml").write_text(_AGENT_CONFIG + allowed)

    def start(self, name: str) -> None:
        """Start the server, or the agent of that name."""
        argv = ["regatta_fleet", "up", "--home", str(self.home)]
        if name in DEVICES:
            argv = ["regatta_agent", "run", "--config", str(self.folder / "agent.toml"), *self.folders(name)]
        with (self.folder / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                [sys.executable, "-m", *argv], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, **self.environments.get(name, {})},
            )  # fmt: skip
        if name == "server":
            wait_until(self._answers, DEADLINE_S, "the server answers", period_s=0.2)

    def kill(self, name: str) -> None:
        """End it as a power cut would."""
        program = self._running.pop(name)
        assert program.poll() is None, f"{name} ended by itself: {self.log(name)}"
        program.kill()
        program.wait(DEADLINE_S)

    @contextmanager
    def without(self, name: str, kind: int) -> Iterator[None]:
        """Let the program have no more of a resource than it has now, and its children neither, for a while."""
        program = self._running[name]
        process = psutil.Process(program.pid)
        _, most = process.rlimit(kind)
        used = process.memory_info().vms if kind == resource.RLIMIT_AS else process.num_fds()
        process.rlimit(kind, (used, most))
        yield
        if program.poll() is None:
            process.rlimit(kind, (most, most))

    def has_ended(self, name: str) -> bool:
        return self._running[name].poll() is not None

    def stop(self) -> None:
        """End all of them."""
        for program in reversed(self._running.values()):
            program.send_signal(signal.SIGTERM)
        for program in self._running.values():
            try:
                program.wait(20)
            except subprocess.TimeoutExpired:
                program.kill()
                program.wait(20)

    def log(self, name: str) -> str:
        return self.whole_log(name)[-3000:]

    def whole_log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def run(self, program: str, *arguments: str) -> str:
        """Run a command to its end and return what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", program, *arguments], capture_output=True, text=True, timeout=DEADLINE_S
        )
        assert done.returncode == 0, f"{program} {arguments}: {done.stderr}"
        return done.stdout

    def regatta(self, *arguments: str) -> Any:  # JSON
        return json.loads(self.run("regatta_fleet", *arguments, "--home", str(self.home), "--json"))

    def enroll(self, name: str) -> None:
        """Enrol the device and start its agent."""
        token = self.regatta("device", "token", "--device", name)["token"]
        self.run("regatta_agent", "enroll", token, *self.folders(name)[:2])
        self.start(name)

    def push(self, side: int = 8) -> int:
        """Push another version of the model and return its number."""
        path = write_tiny_model(self.folder / "tiny.tflite", side, 100, seed=self._versions)
        self._versions = self.regatta("model", "push", str(path), "--name", MODEL)["version"]
        return self._versions

    def roll_out(self, version: int, waves: str = "100%", *devices: str, options: tuple[str, ...] = ()) -> str:
        """Start a rollout and return its id.

        Speed decides nothing: the machine is busy with the test itself, and the first version, whose p99 is a few
        microseconds, is a thousand times smaller than the later ones.
        """
        to = [word for device in devices for word in ("--to", device)]
        gate = ("--gate", "p99-ratio=1000000000", "--trial", "0.5s")
        started = self.regatta("rollout", "start", f"{MODEL}:{version}", "--waves", waves, *to, *gate, *options)
        return str(started["id"])

    def set_window(self, window: str) -> None:
        """Let all devices take new versions into service in this window alone."""
        with open_client(self.home, None) as client:
            client.set_windows("default", (window,))

    def rollout(self, number: str) -> RolloutDetail | None:
        """Return the rollout as the server shows it, or None while there is no server."""
        try:
            with open_client(self.home, None) as client:
                return client.rollout(number)
        except Retryable:
            return None

    def await_completed(self, number: str, *supervised: str) -> None:
        """Return when the rollout is decided; it must have completed. `supervised` agents are started when they end."""

        def decided() -> RolloutDetail | None:
            for name in filter(self.has_ended, supervised):
                self.start(name)
            detail = self.rollout(number)
            return detail if detail is not None and detail.state != RolloutState.RUNNING else None

        detail = wait_until(decided, DEADLINE_S, f"rollout {number} is decided")
        assert detail is not None and detail.state == RolloutState.COMPLETED, detail

    def state(self, name: str, version: int) -> InstallState | None:
        """Return how far the device is with a version, from what lies on its disk."""
        install = RecordFile(self.folder / name / "state").load().find(ModelRef(MODEL, version))
        return install.state if install is not None else None

    def await_state(self, name: str, version: int, *states: InstallState) -> None:
        wait_until(lambda: self.state(name, version) in states, DEADLINE_S, f"{name} is in {states[0]}", period_s=0.005)

    def kill_within(self, name: str, state: InstallState) -> tuple[str, int]:
        """Kill the device's agent in the middle of an update, in this state or a later one; return rollout and version.

        An update that was over before the test could look is followed by another one.
        """
        for _ in range(_GLANCES):
            version = self.push(side=LOADED_SIDE)
            rollout = self.roll_out(version, "100%", name)
            self.await_state(name, version, *THEN[state])
            self.kill(name)
            if self.state(name, version) in IN_PROGRESS:
                return rollout, version
            self.start(name)
            self.await_completed(rollout)
        raise AssertionError(f"{name} was never met in {state}")

    def await_served(self, name: str, version: int) -> None:
        """Return when applications on the device are answered by this version."""

        def served() -> list[str]:
            try:
                with Client(self.folder / name / "run" / f"{MODEL}.sock", timeout_s=5, retry_s=0) as client:
                    return list(client.metadata(MODEL)["versions"]) if client.is_ready(MODEL) else []
            except (RegattaError, OSError):
                return []

        wait_until(lambda: served() == [str(version)], DEADLINE_S, f"{name} serves {MODEL}:{version}")

    def child(self, name: str, words: str) -> psutil.Process | None:
        """Return the child of a program with these words in its command line."""
        for process in psutil.Process(self._running[name].pid).children(recursive=True):
            try:
                if words in " ".join(process.cmdline()):
                    return process
            except psutil.Error:  # it has just ended
                continue
        return None

    def kill_child(self, name: str, words: str) -> None:
        """Kill it, and return when its parent has started another."""
        child = self.child(name, words)
        assert child is not None, f"{name} has no child {words!r}"
        child.kill()

        def follower() -> psutil.Process | None:
            other = self.child(name, words)
            return other if other is not None and other.pid != child.pid else None

        wait_until(follower, DEADLINE_S, f"{name} starts {words!r} again")

    def folders(self, name: str) -> tuple[str, str, str, str]:
        place = self.folder / name
        return ("--state-dir", str(place / "state"), "--run-dir", str(place / "run"))

    def _answers(self) -> bool:
        try:
            with open_client(self.home, None) as client:
                return client.status().broker_up
        except RegattaError:
            assert self._running["server"].poll() is None, self.log("server")
            return False
