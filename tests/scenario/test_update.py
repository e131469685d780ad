"""A whole device over a fleet in memory: updates, ways back, and what goes wrong on the board meanwhile."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from device_rig import MODEL, Rig, installed
from regatta_agent.core.installs import AgentRecord
from regatta_agent.disk.record import RecordFile
from regatta_agent.disk.store import Store
from regatta_agent.serving.events import WindowClosed
from regatta_protocol.errors import StorageFull
from regatta_protocol.ids import ModelName
from regatta_protocol.messages import RaceItem
from regatta_protocol.plain import to_json
from regatta_protocol.values import ServingWindow


def test_a_version_is_installed_and_served(tmp_path: Path) -> None:
    """An assignment ends in a committed version behind the model's socket, and the fleet hears of it."""
    rig = installed(tmp_path)
    rig.run(7)

    last = rig.fleet.reports[-1]
    assert [(m.version, m.state, m.serving, m.rollout) for m in last.models] == [(1, "committed", True, "r1")]
    assert last.generation == 1
    assert [item.report.version for b in rig.fleet.batches for item in b.items if isinstance(item, RaceItem)] == [1]
    sequences = [report.sequence for report in rig.fleet.reports]
    assert sequences == sorted(set(sequences))


def test_an_upgrade_keeps_the_old_version_serving_until_the_new_one_is_on_trial(tmp_path: Path) -> None:
    """At no moment is the socket without a live worker; the old version stays on disk."""
    rig = installed(tmp_path)
    rig.fleet.push(2)
    rig.fleet.assign(2, "r2")

    def looked_at() -> bool:
        assert rig.serving() in (1, 2)
        return rig.committed(2)()

    assert rig.run(until=looked_at, step_s=0.1)
    rig.run(15)
    assert rig.state(1) == "retired"
    assert [child.name for child in rig.launcher.alive("worker:")] == ["worker:digits-2-2"]
    assert len(list(Store(rig.config.state_dir).blobs.iterdir())) == 4


def test_going_back_to_the_version_on_disk_downloads_nothing_and_races_nothing(tmp_path: Path) -> None:
    """A desired state that names the previous version is met from disk."""
    rig = installed(tmp_path)
    rig.fleet.push(2)
    rig.fleet.assign(2, "r2")
    assert rig.run(until=rig.committed(2))
    gets, races = rig.fleet.gets, list(rig.races)
    rig.fleet.assign(1, "r3")

    assert rig.run(until=rig.committed(1))
    assert (rig.fleet.gets, rig.races) == (gets, races)


def test_a_less_accurate_version_is_rolled_back_at_once_with_both_figures(tmp_path: Path) -> None:
    """The race's accuracy decides before a single request reaches the new version."""
    rig = Rig(tmp_path)
    rig.accuracy = {1: 0.98, 2: 0.41}
    rig.start()
    for version in (1, 2):
        rig.fleet.push(version)
    rig.fleet.assign(1)
    assert rig.run(until=rig.committed(1))
    rig.fleet.assign(2, "r2")

    assert rig.run(until=lambda: rig.state(2) == "rolled_back")
    assert rig.install(2).reason == "accuracy 0.41 is 57 points below digits:1's 0.98; allowed 5"
    assert rig.serving() == 1
    assert rig.state(1) == "committed"
    rig.run(2)
    reported = {m.version: m for m in rig.fleet.reports[-1].models}
    assert reported[2].reason == rig.install(2).reason
    assert reported[1].serving and not reported[2].serving


def test_a_rolled_back_version_is_tried_again_only_for_another_rollout(tmp_path: Path) -> None:
    """A new generation of the same rollout changes nothing; a new rollout starts it anew."""
    rig = Rig(tmp_path)
    rig.accuracy = {1: 0.98, 2: 0.41}
    rig.start()
    for version in (1, 2):
        rig.fleet.push(version)
    rig.fleet.assign(1)
    assert rig.run(until=rig.committed(1))
    rig.fleet.assign(2, "r2")
    assert rig.run(until=lambda: rig.state(2) == "rolled_back")
    rig.fleet.assign(2, "r2")
    rig.run(10)
    assert rig.races == [1, 2]
    rig.accuracy[2] = 0.97
    rig.fleet.assign(2, "r3")

    assert rig.run(until=rig.committed(2))
    assert rig.races == [1, 2, 2]


def test_a_worker_that_dies_twice_on_trial_sends_the_socket_back(tmp_path: Path) -> None:
    """The previous version serves again with the rename alone, and the reason says how the worker ended."""
    rig = installed(tmp_path)
    rig.fleet.push(2)
    rig.fleet.assign(2, "r2", trial_s=30)
    for _ in range(2):
        assert rig.run(until=lambda: rig.state(2) == "on_trial" and rig.serving() == 2)
        rig.launcher.alive("worker:digits-2-")[0].end(-11)
        rig.loop.turn(0.0)
        assert rig.serving() == 1

    assert rig.state(2) == "rolled_back"
    assert "ended by signal 11" in (rig.install(2).reason or "")


def test_a_committed_worker_that_dies_starts_again_and_fails_over(tmp_path: Path) -> None:
    """Deaths in a row bring the next best candidate; the version stays committed."""
    rig = installed(tmp_path)
    for _ in range(3):
        rig.launcher.alive("worker:")[0].end(1, "Illegal instruction")
        assert rig.run(until=rig.committed(1), seconds=120)

    assert rig.install(1).placement == "litert/int8/none/t1"


def test_a_newer_generation_supersedes_a_download(tmp_path: Path) -> None:
    """What is no longer wanted is withdrawn in the middle, and its pieces are collected."""
    rig = installed(tmp_path)
    rig.fleet.push(2, 2_000_000)
    rig.fleet.push(3)
    rig.fleet.tamper = lambda get, data: b"" if data[:1] and len(data) == 16_384 else data
    rig.fleet.assign(2, "r2")
    rig.run(3)
    assert rig.state(2) == "downloading"
    rig.fleet.tamper = lambda get, data: data
    rig.fleet.assign(3, "r3")

    assert rig.run(until=rig.committed(3))
    assert rig.state(2) == "retired"
    rig.run(1)
    assert list(Store(rig.config.state_dir).partial.iterdir()) == []


def test_a_model_that_nobody_wants_is_taken_away(tmp_path: Path) -> None:
    """Its worker ends, its socket goes, its files are deleted."""
    rig = installed(tmp_path)
    rig.fleet.assign(None)

    assert rig.run(until=lambda: rig.state(1) == "retired" and not rig.launcher.alive("worker:"))
    assert not (rig.config.run_dir / "digits.sock").is_symlink()
    assert list(Store(rig.config.state_dir).blobs.iterdir()) == []


def test_two_models_are_installed_side_by_side(tmp_path: Path) -> None:
    """Both are served; races and downloads take turns."""
    rig = Rig(tmp_path).start()
    rig.fleet.push(1)
    rig.fleet.push(4, model=ModelName("faces"))
    rig.fleet.assign(1, faces=4)

    assert rig.run(until=rig.committed(1))
    assert rig.run(until=lambda: rig.install(4, ModelName("faces")).state == "committed")
    assert (rig.config.run_dir / "faces.sock").is_symlink()


def test_a_version_without_a_placement_fails_with_the_race_s_reason(tmp_path: Path) -> None:
    """No candidate: failed at once, never retried, the old version serves."""
    rig = installed(tmp_path)
    rig.fleet.push(2)
    rig.unplaced, rig.accuracy[2] = {2}, 0.5
    rig.fleet.assign(2, "r2")

    assert rig.run(until=lambda: rig.state(2) == "failed")
    assert "operator Foo" in (rig.install(2).reason or "")
    rig.run(30)
    assert [m.accuracy.value for m in rig.fleet.reports[-1].models if m.accuracy and m.version == 2] == [0.5]
    assert rig.races == [1, 2]


def test_a_lack_of_space_is_told_before_the_download_and_ends_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason has both figures; nothing is fetched meanwhile; space brings it on without a restart."""
    rig = installed(tmp_path)
    rig.fleet.push(2, 14_000_000)
    monkeypatch.setattr(Store, "free_bytes", lambda _self: 3_000_000)
    rig.fleet.assign(2, "r2")
    assert rig.run(until=lambda: rig.state(2) == "downloading")
    rig.run(2)
    gets = rig.fleet.gets
    rig.run(60)

    assert "needs 14 MB" in (rig.install(2).reason or "")
    assert "3 MB free" in (rig.install(2).reason or "")
    assert rig.fleet.gets == gets
    assert rig.serving() == 1
    monkeypatch.setattr(Store, "free_bytes", lambda _self: 10**9)
    assert rig.run(until=rig.committed(2), seconds=120)


def test_a_disk_that_takes_no_record_begins_nothing_and_keeps_serving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Persist, then act: without the first there is none of the second, and it goes on when there is space."""
    rig = installed(tmp_path)
    rig.fleet.push(2)
    save, tries = RecordFile.save, itertools.count()

    def full(_self: RecordFile, _record: AgentRecord) -> None:
        next(tries)
        raise StorageFull("no space left")

    monkeypatch.setattr(RecordFile, "save", full)
    monkeypatch.setattr(Store, "free_bytes", lambda _self: 10**9)
    rig.fleet.assign(2, "r2")
    rig.run(50)
    assert rig.fleet.gets and rig.races == [1]
    assert rig.serving() == 1
    assert next(tries) == 1, "a full disk is written to again and again"
    monkeypatch.setattr(RecordFile, "save", save)
    monkeypatch.setattr(Store, "free_bytes", lambda _self: 10**12)

    assert rig.run(until=rig.committed(2))


def test_a_board_without_network_boots_into_serving(tmp_path: Path) -> None:
    """Desired state, files and placement are on disk; the broker is not needed."""
    rig = installed(tmp_path)
    rig.broker.kill()
    rig.restart()

    assert rig.run(until=rig.committed(1), seconds=2)
    assert rig.races == [1]


@pytest.mark.parametrize("damage", [b"", b"{", b"\x00" * 500])
def test_a_damaged_record_falls_back_to_the_copy_before(tmp_path: Path, damage: bytes) -> None:
    """No crash loop: the agent starts, and ends where it was."""
    rig = installed(tmp_path)
    rig.run(3)
    rig.kill()
    (rig.config.state_dir / "record.json").write_bytes(damage)
    rig.make()
    rig.start()

    assert rig.run(until=rig.committed(1), seconds=120)


def test_both_records_lost_are_rebuilt_from_the_fleet_without_a_download(tmp_path: Path) -> None:
    """The retained assignment and the blobs on disk are enough."""
    rig = installed(tmp_path)
    rig.kill()
    for name in ("record.json", "record.previous.json"):
        (rig.config.state_dir / name).write_bytes(b"?")
    rig.make()
    gets = rig.fleet.gets
    rig.start()

    assert rig.run(until=rig.committed(1), seconds=120)
    assert rig.fleet.gets == gets


def test_a_manifest_among_the_blobs_is_deleted_once_it_is_in_its_place(tmp_path: Path) -> None:
    """A kill between storing the manifest and dropping its blob leaves nothing for good."""
    rig = installed(tmp_path)
    digest = rig.install(1).manifest_digest
    assert digest is not None
    blob = Store(rig.config.state_dir).blob_path(digest)
    rig.kill()
    blob.write_bytes(rig.fleet.blobs[digest])
    rig.make()
    rig.start()

    assert rig.run(until=rig.committed(1))
    assert not blob.exists()


class _Cut(BaseException):
    """The moment of a SIGKILL."""


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_every_persisted_step_it_ends_in_the_same_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    """Before and after each write of the record of an update: restart, converge, serve; nothing is half."""
    save = RecordFile.save

    def cut_at(point: int) -> Callable[[RecordFile, AgentRecord], None]:
        counter = itertools.count()

        def cutting(self: RecordFile, record: AgentRecord) -> None:
            hit = next(counter) == point
            if hit and not after:
                raise _Cut
            save(self, record)
            if hit:
                raise _Cut

        return cutting

    for point in range(100):
        rig = installed(tmp_path / f"{point}")
        rig.fleet.push(2)
        monkeypatch.setattr(RecordFile, "save", cut_at(point))
        rig.fleet.assign(2, "r2")
        try:
            done = rig.run(until=rig.committed(2))
        except _Cut:
            monkeypatch.setattr(RecordFile, "save", save)
            rig.restart()
            assert rig.run(until=rig.serves, seconds=1), point
            assert rig.run(until=rig.committed(2), seconds=120), (point, rig.install(2))
            continue
        monkeypatch.setattr(RecordFile, "save", save)
        assert done
        assert point > 5
        return
    pytest.fail("the update never ended")


def test_telemetry_survives_a_restart_and_is_told_once(tmp_path: Path) -> None:
    """Windows that were measured offline arrive later, each batch under one id."""
    rig = installed(tmp_path)
    rig.run(10)
    rig.broker.kill()
    rig.run(1)

    window = WindowClosed(
        model=MODEL, version=1, placement="litert/int8/xnnpack/t1", start=1.0, stop=2.0, requests=5, errors=0
    )
    rig.launcher.alive("worker:")[0].say(to_json(window))
    rig.run(1)
    rig.restart()
    before = len(rig.fleet.batches)
    rig.broker.start()
    rig.run(15)

    windows = [item for batch in rig.fleet.batches[before:] for item in batch.items if isinstance(item, ServingWindow)]
    assert [window.requests for window in windows] == [5]
    assert rig.outbox.waiting() == 0


def test_a_clean_stop_drains_the_workers_and_says_goodbye(tmp_path: Path) -> None:
    """SIGTERM: workers end, presence is down, the record is kept."""
    rig = installed(tmp_path)
    rig.loop.stopping = "SIGTERM"
    rig.loop.stop()

    assert rig.launcher.alive() == []
    assert rig.broker.up
    assert RecordFile(rig.config.state_dir).load().generation == 1
