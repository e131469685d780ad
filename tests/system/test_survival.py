"""`kill -9` of each program while a fleet works: what was killed is started again, and all ends as desired by itself.

The same programs that a user starts, with the real Mosquitto: `regatta up`, two agents, models that `regatta` pushes.
The broker and the serving workers are children, which their parents start again; the server and the agents are
started again by the test, as systemd would.
"""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from mosquitto import require_mosquitto
from polling import wait_until
from regatta_agent.client import Client
from regatta_agent.core.states import IN_PROGRESS
from regatta_agent.record import RecordFile
from regatta_fleet.cli.connection import open_client
from regatta_fleet.schemas import BatchOnDevice, ResultsRequest, RolloutDetail, RolloutState, WaveState
from regatta_protocol.batch import BatchState
from regatta_protocol.errors import RegattaError, Retryable
from regatta_protocol.ids import ModelName, ModelRef
from regatta_protocol.messages import InstallState
from regatta_provisioning.sealed import SEALED_FILE
from tiny_models import write_tiny_model

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

DEVICES = ("quay-1", "quay-2")
MODEL = ModelName("tiny")
# A small race, and short waits: this is about survival.
_AGENT_CONFIG = "race_threads = [1]\nrace_budget_s = 2\ntelemetry_period_s = 0.5\nbackoff_base_s = 0.2\n"
_DEADLINE_S = 150.0  # of each wait: a rollout takes 4 s alone on the machine, and it may have eight others on it
_GLANCES = 5  # at a state that is over in a second: the test itself may have to wait for the processor as long
_STARVED_S = 10.0  # at most, until a fault is felt
_RECORDS = 40_000  # of a batch job: long enough to be met at it
_PULLED = 12_000  # of another: 3.5 MB of results
_LOADED_SIDE = 48  # 3.7 MB: long enough on the wire to be met there
_WORDS_OF_WANT = ("MemoryError", "no resources left", "no thread could be started", "Too many open files")


_ROAD = (
    InstallState.DOWNLOADING, InstallState.VERIFIED, InstallState.RACING, InstallState.PLACED, InstallState.ON_TRIAL,
    InstallState.COMMITTED,
)  # fmt: skip
_FROM = {state: _ROAD[place:] for place, state in enumerate(_ROAD)}  # a state, and those that follow


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


class Fleet:
    """The programs of a fleet by name, and what each of them shows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "fleet"
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._versions = 0
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
                [sys.executable, "-m", *argv], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        if name == "server":
            wait_until(self._answers, _DEADLINE_S, "the server answers", period_s=0.2)

    def kill(self, name: str) -> None:
        """End it as a power cut would."""
        program = self._running.pop(name)
        assert program.poll() is None, f"{name} ended by itself: {self.log(name)}"
        program.kill()
        program.wait(_DEADLINE_S)

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
            [sys.executable, "-m", program, *arguments], capture_output=True, text=True, timeout=_DEADLINE_S
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

        detail = wait_until(decided, _DEADLINE_S, f"rollout {number} is decided")
        assert detail is not None and detail.state == RolloutState.COMPLETED, detail

    def state(self, name: str, version: int) -> InstallState | None:
        """Return how far the device is with a version, from what lies on its disk."""
        install = RecordFile(self.folder / name / "state").load().find(ModelRef(MODEL, version))
        return install.state if install is not None else None

    def await_state(self, name: str, version: int, *states: InstallState) -> None:
        wait_until(
            lambda: self.state(name, version) in states, _DEADLINE_S, f"{name} is in {states[0]}", period_s=0.005
        )

    def kill_within(self, name: str, state: InstallState) -> tuple[str, int]:
        """Kill the device's agent in the middle of an update, in this state or a later one; return rollout and version.

        An update that was over before the test could look is followed by another one.
        """
        for _ in range(_GLANCES):
            version = self.push(side=_LOADED_SIDE)
            rollout = self.roll_out(version, "100%", name)
            self.await_state(name, version, *_FROM[state])
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

        wait_until(lambda: served() == [str(version)], _DEADLINE_S, f"{name} serves {MODEL}:{version}")

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

        wait_until(follower, _DEADLINE_S, f"{name} starts {words!r} again")

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


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Two devices that serve the first version."""
    require_mosquitto()
    fleet = Fleet(tmp_path_factory.mktemp("s"))  # a short name: unix socket paths end at 107 bytes
    try:
        fleet.start("server")
        for name in DEVICES:
            fleet.enroll(name)
        fleet.await_completed(fleet.roll_out(fleet.push()))
        yield fleet
    finally:
        fleet.stop()


def test_an_agent_killed_at_work_ends_where_it_would_have(fleet: Fleet) -> None:
    """Killed while it fetches, while it races, and while it serves: the rollout completes, and it serves again."""
    name = DEVICES[0]
    for state in (InstallState.DOWNLOADING, InstallState.RACING):
        rollout, version = fleet.kill_within(name, state)
        fleet.start(name)
        fleet.await_completed(rollout)
        fleet.await_served(name, version)

    fleet.kill(name)
    fleet.start(name)
    fleet.await_served(name, version)
    assert fleet.state(name, version) == InstallState.COMMITTED


def test_an_agent_whose_identity_was_damaged_in_a_power_cut_comes_back(fleet: Fleet) -> None:
    """Certificate, key, CA, root and name emptied: the same device connects again, and takes its next version."""
    name = DEVICES[0]
    identity = fleet.folder / name / "state" / "identity"
    before = {path.name: path.read_bytes() for path in identity.iterdir()}
    version = fleet.push()

    fleet.kill(name)
    for path in identity.iterdir():
        if path.name != SEALED_FILE:
            path.write_bytes(b"")
    fleet.start(name)

    fleet.await_completed(fleet.roll_out(version, "100%", name))
    fleet.await_served(name, version)
    assert {path.name: path.read_bytes() for path in identity.iterdir()} == before


@pytest.mark.parametrize("kind", [resource.RLIMIT_AS, resource.RLIMIT_NOFILE], ids=["memory", "descriptors"])
def test_an_agent_without_memory_or_descriptors_recovers_or_ends(fleet: Fleet, kind: int) -> None:
    """Not one more in the middle of an update: it never hangs, loses nothing, and converges when there are some."""
    name = DEVICES[0]
    version = fleet.push(side=_LOADED_SIDE)
    known = len(fleet.whole_log(name))
    rollout = fleet.roll_out(version, "100%", name)
    fleet.await_state(name, version, *_FROM[InstallState.DOWNLOADING])

    def felt() -> bool:
        said = fleet.whole_log(name)[known:]
        return fleet.has_ended(name) or any(words in said for words in _WORDS_OF_WANT)

    with fleet.without(name, kind), suppress(AssertionError):  # a device that needs nothing more does well, too
        wait_until(felt, _STARVED_S, "the agent lacks something")

    fleet.await_completed(rollout, name)
    fleet.await_served(name, version)


def test_a_killed_worker_is_started_again(fleet: Fleet) -> None:
    """The agent sees it die and serves the same version again; nothing is raced or rolled back for it."""
    name = DEVICES[1]

    fleet.kill_child(name, "regatta_agent.serving")

    fleet.await_served(name, 1)
    assert fleet.state(name, 1) == InstallState.COMMITTED


def test_an_agent_killed_in_a_batch_job_goes_on_with_it(fleet: Fleet) -> None:
    """Its process ends with it; the job that the fleet started comes to its end, each record once, with a summary."""
    name, output = DEVICES[1], fleet.folder / "out" / "found.jsonl"
    np.save(fleet.folder / "in" / "x.npy", np.random.default_rng(0).random((_RECORDS, 8, 8, 1), dtype=np.float32))
    source = str(fleet.folder / "in" / "x.npy")
    place = ("--input", source, "--output", output.name)
    number = str(fleet.regatta("batch", "start", MODEL, "--on", name, *place)["id"])

    wait_until(output.with_name(f"{output.name}.part").exists, _DEADLINE_S, "the job begins", period_s=0.005)
    fleet.kill(name)
    assert not output.exists()
    fleet.start(name)

    def ended() -> BatchOnDevice | None:
        with open_client(fleet.home, None) as client:
            (device,) = client.batch(number).devices
        assert device.state not in (BatchState.FAILED, BatchState.CANCELLED), device
        return device if device.state is BatchState.DONE else None

    device = wait_until(ended, _DEADLINE_S, "the job is done")
    assert device is not None and device.summary is not None
    keys = [json.loads(line)["key"] for line in output.read_text().splitlines()]
    assert keys == [f"{source}[{place}]" for place in range(_RECORDS)]
    assert (device.summary.records, device.summary.refused) == (_RECORDS, 0)
    assert sum(device.summary.classes.values()) + device.summary.other_classes == _RECORDS


def test_results_are_pulled_although_agent_and_server_are_killed(fleet: Fleet) -> None:
    """A job's output of some megabytes: on its way both die, and what arrives is what lies on the device."""
    name, output = DEVICES[1], fleet.folder / "out" / "pulled.jsonl"
    source = fleet.folder / "in" / "y.npy"
    np.save(source, np.random.default_rng(1).random((_PULLED, 8, 8, 1), dtype=np.float32))
    place = ("--input", str(source), "--output", output.name)
    number = str(fleet.regatta("batch", "start", MODEL, "--on", name, *place)["id"])

    def stands() -> BatchOnDevice | None:
        try:
            with open_client(fleet.home, None) as client:
                return client.batch(number).devices[0]
        except Retryable:
            return None

    wait_until(lambda: (one := stands()) and one.state is BatchState.DONE, _DEADLINE_S, "the job is done")
    assert output.stat().st_size > 3_000_000
    with open_client(fleet.home, None) as client:
        client.ask_results(number, ResultsRequest())
    whole = fleet.home / "results" / number / name
    part = whole.with_name(f".{name}.part")
    wait_until(lambda: _size(part) > 0 or whole.exists(), _DEADLINE_S, "it is on its way", period_s=0.002)
    fleet.kill(name)
    fleet.kill("server")
    fleet.start("server")
    fleet.start(name)

    told = fleet.regatta("batch", "results", number, "--output", str(fleet.folder / "pulled"))
    (device,) = told["devices"]
    assert Path(device["path"]).read_bytes() == output.read_bytes()
    told_at = fleet.folder / name / "run" / "traffic.json"
    spent = wait_until(lambda: json.loads(told_at.read_bytes())["causes"].get("results"), _DEADLINE_S, "it is counted")
    assert spent[0] > 1000 and spent[1] > 0  # when all had come before the kill, only an offer is left to count


def test_a_broker_killed_in_a_rollout_is_started_again(fleet: Fleet) -> None:
    """The server starts it again, the agents come back, and the rollout completes."""
    version = fleet.push(side=_LOADED_SIDE)
    rollout = fleet.roll_out(version)

    fleet.await_state(DEVICES[0], version, *_FROM[InstallState.DOWNLOADING])
    fleet.kill_child("server", "mosquitto.conf")

    fleet.await_completed(rollout)
    for name in DEVICES:
        fleet.await_served(name, version)


def test_a_server_killed_in_a_rollout_goes_on_with_it(fleet: Fleet) -> None:
    """Killed in the first wave, and again in the second: both waves pass, and no device needs help."""
    version = fleet.push(side=_LOADED_SIDE)
    rollout = fleet.roll_out(version, "50%,100%")

    def in_wave(number: int) -> bool:
        detail = fleet.rollout(rollout)
        return detail is not None and detail.waves[number - 1].state != WaveState.PENDING

    for number in (1, 2):
        wait_until(partial(in_wave, number), _DEADLINE_S, f"wave {number} begins")
        fleet.kill("server")
        fleet.start("server")

    fleet.await_completed(rollout)
    for name in DEVICES:
        fleet.await_served(name, version)


def test_a_device_waits_for_its_update_window_and_goes_on_when_it_opens(fleet: Fleet) -> None:
    """Downloaded, and told on both sides until when; the gate waits with it; then by a setting, and by the override."""
    name, opens = DEVICES[0], datetime.now(timezone.utc) + timedelta(hours=6)
    closed = f"{opens:%H:%M}-{opens + timedelta(hours=1):%H:%M} UTC"
    version = fleet.push()
    fleet.set_window(closed)
    served = RecordFile(fleet.folder / name / "state").load().serving(MODEL)
    assert served is not None
    rollout = fleet.roll_out(version, "100%", name)

    def waiting() -> bool:
        detail = fleet.rollout(rollout)
        return detail is not None and detail.waves[0].waiting == 1

    wait_until(waiting, _DEADLINE_S, "the server hears that the device waits")
    words = f"waits: window opens {opens:%H:%M} UTC"
    assert fleet.state(name, version) is InstallState.VERIFIED
    assert words in fleet.run("regatta_agent", "status", *fleet.folders(name))
    assert f"{name} ({words})" in fleet.run("regatta_fleet", "rollout", "show", rollout, "--home", str(fleet.home))
    fleet.await_served(name, served.version)

    fleet.set_window("00:00-24:00")
    fleet.await_completed(rollout)
    fleet.await_served(name, version)

    fleet.set_window(closed)
    urgent = fleet.push()
    fleet.await_completed(fleet.roll_out(urgent, "100%", name, options=("--ignore-window",)))
    fleet.await_served(name, urgent)
    fleet.set_window("00:00-24:00")  # for whoever comes after
