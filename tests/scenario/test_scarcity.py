"""A device whose board lacks something for a while: it serves on, does not burn the card, and goes on by itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from device_rig import DEVICE, MODEL, Rig
from regatta_agent.core.installs import AgentRecord
from regatta_agent.core.states import IN_PROGRESS
from regatta_agent.disk.partial import PartialFile
from regatta_agent.disk.record import UNSAVED_REPORTS, RecordFile
from regatta_agent.disk.store import Store
from regatta_agent.events import ChildEnded
from regatta_agent.serving.events import WindowClosed
from regatta_agent.status import StateLock
from regatta_agent.testing import ScriptedChild
from regatta_agent.work.authorizing import Authorize
from regatta_agent.work.fetcher import FetchFiles, FetchManifest
from regatta_agent.work.racing import FleetResults, Race
from regatta_protocol.codec import encode
from regatta_protocol.errors import StorageFull
from regatta_protocol.ids import ModelRef
from regatta_protocol.messages import InstallState
from regatta_protocol.plain import to_json
from regatta_provisioning.verifying import parse_job
from scarcity import SmallDisk, no_descriptors, small_disk

_DISK_BYTES = 4 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "state", _DISK_BYTES) as disk:
        yield disk


@pytest.fixture
def rig(tmp_path: Path, disk: SmallDisk) -> Iterator[Rig]:
    """A device with its state on the small disk, that serves version 1 and may be given version 2."""
    rig = Rig(tmp_path).start()
    for version in (1, 2):
        rig.fleet.push(version, 600_000)
    rig.fleet.assign(1)
    assert rig.run(until=rig.committed(1))
    yield rig
    rig.outbox.close()


def chatty(rig: Rig) -> None:
    """Let the workers tell a window, as real ones do all the time."""
    for child in rig.launcher.alive("worker:"):
        version = int(child.name.split("-")[1])
        window = WindowClosed(
            model=MODEL, version=version, placement="litert/int8/xnnpack/t1", start=1.0, stop=2.0, requests=5, errors=0
        )
        child.say(to_json(window))


@pytest.mark.parametrize("state", sorted(IN_PROGRESS - {InstallState.VERIFIED}))  # which is racing before it is written
def test_a_disk_that_fills_up_in_any_state_is_tried_once_an_hour_until_there_is_space(
    rig: Rig, disk: SmallDisk, monkeypatch: pytest.MonkeyPatch, state: InstallState
) -> None:
    """Three hours: a model serves, no version fails, tries are bounded; with space it is committed at once."""
    ref, save, begin = ModelRef(MODEL, 2), RecordFile.save, PartialFile.open
    full, refused = [False], {"record": 0, "download": 0}

    def saving(self: RecordFile, record: AgentRecord) -> None:
        install = record.find(ref)
        if not full[0] and install is not None and install.state == state:
            full[0] = True
            disk.fill()
        with refusals("record"):
            save(self, record)

    def opening(self: PartialFile) -> None:
        with refusals("download"):
            begin(self)

    @contextmanager
    def refusals(what: str) -> Iterator[None]:
        try:
            yield
        except (StorageFull, OSError):
            refused[what] += 1
            raise

    monkeypatch.setattr(RecordFile, "save", saving)
    monkeypatch.setattr(PartialFile, "open", opening)
    rig.fleet.assign(2, "r2", trial_s=30)
    for _ in range(180):
        rig.run(59, step_s=20)
        chatty(rig)
        assert rig.serves()

    assert full[0]
    assert all(count <= 4 for count in refused.values()), refused
    assert rig.state(2) not in ("failed", "rolled_back")
    disk.free()
    assert rig.run(until=rig.committed(2), seconds=120), rig.install(2)
    assert rig.install(2).attempt == 0


def test_a_disk_that_is_full_at_the_start_serves_all_the_same(rig: Rig, disk: SmallDisk) -> None:
    """A board that boots with a full disk has its model; telemetry is lost, counted, and told with space."""
    disk.fill()
    rig.restart()
    assert rig.run(until=rig.committed(1), seconds=2)
    for _ in range(3):
        chatty(rig)
        rig.run(30)
    disk.free()
    rig.run(90)
    chatty(rig)
    rig.run(30)

    assert rig.serving() == 1
    told = [batch for batch in rig.fleet.batches if batch.dropped]
    assert [batch.dropped for batch in told] == [3]
    assert len({batch.id for batch in rig.fleet.batches}) == len(rig.fleet.batches)


def test_the_reason_has_both_figures_and_stays_while_logs_come_and_go(rig: Rig, disk: SmallDisk) -> None:
    """`needs 0.6 MB …, 0.3 MB free`; some kilobytes more or less are no reason to try."""
    disk.fill(left_bytes=300_000)
    rig.fleet.assign(2, "r2")
    rig.run(5)
    gets = rig.fleet.gets
    disk.fill(left_bytes=250_000)
    rig.run(600, step_s=5)

    assert re.fullmatch(
        r"needs 0\.6 MB and 0 MB reserve, 0\.[23] MB free: free some space and it goes on", rig.install(2).reason or ""
    )
    assert rig.fleet.gets == gets
    disk.free()
    assert rig.run(until=rig.committed(2))


def test_a_state_folder_that_takes_nothing_is_served_from_and_gone_on_with(rig: Rig, disk: SmallDisk) -> None:
    """Read-only at work and at a start: the model serves, nothing new is begun, and writing again is enough."""
    rig.outbox.close()
    disk.take_nothing()
    rig.fleet.assign(2, "r2")
    rig.run(600, step_s=5)
    assert rig.committed(1)()
    assert rig.races == [1]

    lock = StateLock(rig.config.state_dir)
    with pytest.raises(OSError, match="lock"):
        lock.take()
    rig.restart()
    assert rig.run(until=rig.committed(1), seconds=2)
    rig.outbox.close()
    disk.take_nothing(refuse=False)
    assert rig.run(until=rig.committed(2), seconds=120), rig.install(2)


def no_room_for_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse the record as a full disk does; a tmpfs has room for it as soon as the copy before is let go of."""

    def save(self: RecordFile, record: AgentRecord) -> None:
        raise StorageFull(f"no space left to write record.json ({len(encode(record, 1 << 22))} bytes): free some")

    monkeypatch.setattr(RecordFile, "save", save)


@pytest.mark.parametrize("restarts", [0, 1, 3])
def test_the_fleet_hears_of_a_disk_that_takes_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch, restarts: int) -> None:
    """The wanted version is told with the reason, and nothing as done that a restart would undo; numbers only grow."""
    with monkeypatch.context() as full:
        no_room_for_the_record(full)
        for _ in range(restarts):
            rig.restart()
            rig.run(2)
        rig.fleet.assign(2, "r2")
        rig.run(600, step_s=5)

        report = rig.fleet.reports[-1]
        told = {model.version: model for model in report.models}
        assert (report.generation, told[2].state, told[2].rollout) == (1, "assigned", "r2")
        assert "no space left to write record.json" in (told[2].reason or "")
        assert (told[1].state, told[1].serving) == ("committed", True)
        assert len(rig.fleet.reports) < 20 + 4 * restarts
        rig.fleet.assign(2, "r3")
    assert rig.run(until=rig.committed(2), seconds=7200, step_s=5), rig.install(2)
    rig.run(2)
    assert (rig.fleet.reports[-1].generation, rig.fleet.reports[-1].models[-1].state) == (3, "committed")
    sequences = [report.sequence for report in rig.fleet.reports]
    assert sequences == sorted(set(sequences))


def test_the_numbers_of_unsaved_reports_stay_within_what_was_set_aside(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that can write nothing falls silent before it says a number that a restart would say again."""
    no_room_for_the_record(monkeypatch)
    for _ in range(2 * UNSAVED_REPORTS):
        rig.loop._parts.reporter.connected()
        rig.run(0.1, step_s=0.2)
    last = rig.fleet.reports[-1].sequence
    assert last == RecordFile(rig.config.state_dir).load().report_sequence + UNSAVED_REPORTS
    rig.restart()
    rig.run(5)

    assert rig.fleet.reports[-1].sequence > last


def test_the_lock_of_a_folder_that_takes_nothing_can_be_taken(tmp_path: Path) -> None:
    """The lock of an earlier start is enough, or an agent could not start from a read-only folder."""
    with small_disk(tmp_path / "state", 1 << 20) as disk:
        first = StateLock(disk.path)
        first.take()
        first.release()
        disk.take_nothing()
        first.take()
        first.release()


def test_without_a_descriptor_nothing_is_lost_deleted_or_held_against_a_version(rig: Rig) -> None:
    """Ten minutes in which no file can be opened, with a worker's death in them: then all goes on where it was."""
    rig.fleet.assign(2, "r2", trial_s=30)
    assert rig.run(until=lambda: rig.state(2) == "on_trial")
    blobs = {path.name for path in Store(rig.config.state_dir).blobs.iterdir()}
    sent = rig.fleet.sent_bytes
    rig.launcher.alive("worker:digits-2-")[0].end(-9)
    with no_descriptors():
        rig.run(600, step_s=5)

    assert rig.state(1) == "committed"
    assert {path.name for path in Store(rig.config.state_dir).blobs.iterdir()} == blobs
    assert rig.run(until=rig.committed(2), seconds=200), rig.install(2)
    assert rig.fleet.sent_bytes == sent


@pytest.mark.parametrize("job", [Authorize, FetchManifest, FetchFiles, Race])
def test_what_cannot_begin_for_want_of_descriptors_costs_no_attempt(
    rig: Rig, job: type[Authorize | FetchManifest | FetchFiles | Race], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every job is begun without a descriptor at first; it is tried again, and the version is committed."""
    begin, left = job.begin, [3]

    def starved(self: object, now_s: float) -> object:
        left[0] -= 1
        with no_descriptors() if left[0] >= 0 else nullcontext():
            return begin(self, now_s)  # type: ignore[arg-type]

    monkeypatch.setattr(job, "begin", starved)
    rig.fleet.assign(2, "r2")

    assert rig.run(until=rig.committed(2), seconds=300), rig.install(2)
    assert left[0] < 0 or job is Authorize
    assert rig.install(2).attempt == 0


def test_a_race_that_dies_of_a_full_run_folder_waits_for_space(rig: Rig, tmp_path: Path) -> None:
    """Its report goes to the run folder: that it finds no room there says nothing about the model."""
    with small_disk(rig.config.run_dir / "tiny", 65_536) as run:
        results = FleetResults(rig.bus, DEVICE, "race-1")
        settings = rig.loop._parts.actions._race
        store = Store(rig.config.state_dir)
        race = Race("race-1", rig.install(1).ref, store, rig.launcher, run.path, settings, results, 0.0)
        run.fill()
        outcome = race.handle(ChildEnded("race-1", 1, "OSError: no space left"), 0.0)

    assert isinstance(getattr(outcome, "error", None), StorageFull)


@pytest.mark.parametrize(
    "end", [(-9, ""), (1, "OSError: [Errno 24] Too many open files")], ids=["memory", "descriptors"]
)
def test_a_board_without_room_for_a_verifier_takes_up_the_wish_and_its_version_when_there_is_some(
    rig: Rig, end: tuple[int, str]
) -> None:
    """Hours in which verifiers die: nothing is held against the version, and the fleet need not say its wish again."""
    verifier, lacking, started = rig.launcher._verifier, {"assignment", "metadata"}, [0]

    def verify(child: ScriptedChild, stdin: bytes) -> None:
        started[0] += 1
        if parse_job(stdin).kind in lacking:
            child.end(*end)
        else:
            verifier(child, stdin)

    rig.launcher._verifier = verify  # type: ignore[method-assign]
    rig.fleet.assign(2, "r2")
    rig.run(3600, step_s=10)
    assert rig.loop.record.generation == 1
    assert "not verified yet: the verifier gave no result" in (rig.loop._parts.desired.refused or "")

    lacking.remove("assignment")
    rig.run(3600, step_s=10)
    assert (rig.state(2), rig.install(2).attempt) == ("assigned", 0)
    assert started[0] < 100, "it is tried again and again"

    lacking.clear()
    assert rig.run(until=rig.committed(2), seconds=400), rig.install(2)
    assert rig.install(2).attempt == 0


def workers(rig: Rig) -> int:
    return sum(child.name.startswith("worker:") for child in rig.launcher.children)


def test_a_worker_that_finds_the_run_folder_full_waits_for_space_there(rig: Rig) -> None:
    """No death, no roll-back, one try an hour; when that folder has space again it serves at once."""
    with small_disk(rig.config.run_dir / "workers" / "tiny", 2 << 20) as run:
        pool = rig.loop._parts.workers
        pool._folder, pool._run_dir = run.path, run.path
        run.fill()
        begun = workers(rig)
        rig.launcher.alive("worker:")[0].end(-9)
        rig.run(3 * 3600, step_s=20)
        assert "no space left for its worker" in (rig.install(1).reason or "")
        assert rig.install(1).deaths == 1
        assert workers(rig) == begun, "none of them had its settings"
        assert list(run.path.glob("*.json")) == [], "what was begun was left there"

        run.free()
        assert rig.run(10, until=lambda: bool(rig.launcher.alive("worker:")))
