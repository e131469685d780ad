"""`kill -9` of each program while a fleet works: what was killed is started again, and all ends as desired by itself.

The same programs that a user starts, with the real Mosquitto: `regatta up`, two agents, models that `regatta` pushes.
The broker and the serving workers are children, which their parents start again; the server and the agents are
started again by the test, as systemd would.
"""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from mosquitto import require_mosquitto
from polling import wait_until
from regatta_agent.disk.record import RecordFile
from regatta_fleet.cli.connection import open_client
from regatta_fleet.schemas import BatchOnDevice, ResultsRequest, WaveState
from regatta_protocol.batch import BatchState
from regatta_protocol.errors import Retryable
from regatta_protocol.messages import InstallState
from regatta_provisioning.sealed import SEALED_FILE
from running_fleet import DEADLINE_S, DEVICES, LOADED_SIDE, MODEL, THEN, RunningFleet

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

_STARVED_S = 10.0  # at most, until a fault is felt
_RECORDS = 40_000  # of a batch job: long enough to be met at it
_PULLED = 12_000  # of another: 3.5 MB of results
_WORDS_OF_WANT = ("MemoryError", "no resources left", "no thread could be started", "Too many open files")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFleet]:
    """Two devices that serve the first version."""
    require_mosquitto()
    fleet = RunningFleet(tmp_path_factory.mktemp("s"))  # a short name: unix socket paths end at 107 bytes
    try:
        fleet.start("server")
        for name in DEVICES:
            fleet.enroll(name)
        fleet.await_completed(fleet.roll_out(fleet.push()))
        yield fleet
    finally:
        fleet.stop()


def test_an_agent_killed_at_work_ends_where_it_would_have(fleet: RunningFleet) -> None:
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


def test_an_agent_whose_identity_was_damaged_in_a_power_cut_comes_back(fleet: RunningFleet) -> None:
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


def test_an_agent_whose_identity_is_lost_serves_until_it_is_enrolled_again(fleet: RunningFleet) -> None:
    """Both copies emptied: its model answers, `status` says what to do, and with a token for its name it is back."""
    name = DEVICES[1]
    served = RecordFile(fleet.folder / name / "state").load().serving(MODEL)
    assert served is not None
    fleet.kill(name)
    for path in (fleet.folder / name / "state" / "identity").iterdir():
        path.write_bytes(b"")

    fleet.start(name)
    fleet.await_served(name, served.version)
    assert "regatta-agent enroll TOKEN --force" in fleet.run("regatta_agent", "status", *fleet.folders(name))
    token = fleet.regatta("device", "token", "--device", name)["token"]
    assert "restart it" in fleet.run("regatta_agent", "enroll", token, "--force", *fleet.folders(name)[:2])
    fleet.kill(name)
    fleet.start(name)

    version = fleet.push()
    fleet.await_completed(fleet.roll_out(version, "100%", name))
    fleet.await_served(name, version)


@pytest.mark.parametrize("kind", [resource.RLIMIT_AS, resource.RLIMIT_NOFILE], ids=["memory", "descriptors"])
def test_an_agent_without_memory_or_descriptors_recovers_or_ends(fleet: RunningFleet, kind: int) -> None:
    """Not one more in the middle of an update: it never hangs, loses nothing, and converges when there are some."""
    name = DEVICES[0]
    version = fleet.push(side=LOADED_SIDE)
    known = len(fleet.whole_log(name))
    rollout = fleet.roll_out(version, "100%", name)
    fleet.await_state(name, version, *THEN[InstallState.DOWNLOADING])

    def felt() -> bool:
        said = fleet.whole_log(name)[known:]
        return fleet.has_ended(name) or any(words in said for words in _WORDS_OF_WANT)

    with fleet.without(name, kind), suppress(AssertionError):  # a device that needs nothing more does well, too
        wait_until(felt, _STARVED_S, "the agent lacks something")

    fleet.await_completed(rollout, name)
    fleet.await_served(name, version)


def test_a_killed_worker_is_started_again(fleet: RunningFleet) -> None:
    """The agent sees it die and serves the same version again; nothing is raced or rolled back for it."""
    name = DEVICES[1]
    served = RecordFile(fleet.folder / name / "state").load().serving(MODEL)
    assert served is not None

    fleet.kill_child(name, "regatta_agent.serving")

    fleet.await_served(name, served.version)
    assert fleet.state(name, served.version) == InstallState.COMMITTED


def test_an_agent_killed_in_a_batch_job_goes_on_with_it(fleet: RunningFleet) -> None:
    """Its process ends with it; the job that the fleet started comes to its end, each record once, with a summary."""
    name, output = DEVICES[1], fleet.folder / "out" / "found.jsonl"
    np.save(fleet.folder / "in" / "x.npy", np.random.default_rng(0).random((_RECORDS, 8, 8, 1), dtype=np.float32))
    source = str(fleet.folder / "in" / "x.npy")
    place = ("--input", source, "--output", output.name)
    number = str(fleet.regatta("batch", "start", MODEL, "--on", name, *place)["id"])

    wait_until(output.with_name(f"{output.name}.part").exists, DEADLINE_S, "the job begins", period_s=0.005)
    fleet.kill(name)
    assert not output.exists()
    fleet.start(name)

    def ended() -> BatchOnDevice | None:
        with open_client(fleet.home, None) as client:
            (device,) = client.batch(number).devices
        assert device.state not in (BatchState.FAILED, BatchState.CANCELLED), device
        return device if device.state is BatchState.DONE else None

    device = wait_until(ended, DEADLINE_S, "the job is done")
    assert device is not None and device.summary is not None
    keys = [json.loads(line)["key"] for line in output.read_text().splitlines()]
    assert keys == [f"{source}[{place}]" for place in range(_RECORDS)]
    assert (device.summary.records, device.summary.refused) == (_RECORDS, 0)
    assert sum(device.summary.classes.values()) + device.summary.other_classes == _RECORDS


def test_results_are_pulled_although_agent_and_server_are_killed(fleet: RunningFleet) -> None:
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

    wait_until(lambda: (one := stands()) and one.state is BatchState.DONE, DEADLINE_S, "the job is done")
    assert output.stat().st_size > 3_000_000
    with open_client(fleet.home, None) as client:
        client.ask_results(number, ResultsRequest())
    whole = fleet.home / "results" / number / name
    part = whole.with_name(f".{name}.part")
    wait_until(lambda: _size(part) > 0 or whole.exists(), DEADLINE_S, "it is on its way", period_s=0.002)
    fleet.kill(name)
    fleet.kill("server")
    fleet.start("server")
    fleet.start(name)

    told = fleet.regatta("batch", "results", number, "--output", str(fleet.folder / "pulled"))
    (device,) = told["devices"]
    assert Path(device["path"]).read_bytes() == output.read_bytes()
    told_at = fleet.folder / name / "run" / "traffic.json"
    spent = wait_until(lambda: json.loads(told_at.read_bytes())["causes"].get("results"), DEADLINE_S, "it is counted")
    assert spent[0] > 1000 and spent[1] > 0  # when all had come before the kill, only an offer is left to count


def test_a_broker_killed_in_a_rollout_is_started_again(fleet: RunningFleet) -> None:
    """The server starts it again, the agents come back, and the rollout completes."""
    version = fleet.push(side=LOADED_SIDE)
    rollout = fleet.roll_out(version)

    fleet.await_state(DEVICES[0], version, *THEN[InstallState.DOWNLOADING])
    fleet.kill_child("server", "mosquitto.conf")

    fleet.await_completed(rollout)
    for name in DEVICES:
        fleet.await_served(name, version)


def test_a_server_killed_in_a_rollout_goes_on_with_it(fleet: RunningFleet) -> None:
    """Killed in the first wave, and again in the second: both waves pass, and no device needs help."""
    version = fleet.push(side=LOADED_SIDE)
    rollout = fleet.roll_out(version, "50%,100%")

    def in_wave(number: int) -> bool:
        detail = fleet.rollout(rollout)
        return detail is not None and detail.waves[number - 1].state != WaveState.PENDING

    for number in (1, 2):
        wait_until(partial(in_wave, number), DEADLINE_S, f"wave {number} begins")
        fleet.kill("server")
        fleet.start("server")

    fleet.await_completed(rollout)
    for name in DEVICES:
        fleet.await_served(name, version)


def test_a_device_waits_for_its_update_window_and_goes_on_when_it_opens(fleet: RunningFleet) -> None:
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

    wait_until(waiting, DEADLINE_S, "the server hears that the device waits")
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
