"""A turn of the loop reads and deletes a bounded amount, however large files are: no disk is waited for."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from device_rig import Rig
from regatta_agent.disk import digests, store
from regatta_agent.serving.events import Failed, Ready, SelfTest
from regatta_agent.serving.spec import ServeSpec
from regatta_agent.testing import ScriptedChild
from regatta_agent.workers import WorkerPool
from regatta_protocol.ids import digest_of_bytes
from regatta_protocol.plain import to_json

_TURN_BYTES = 64 * 1024
_SIZE_BYTES = 1_500_000
_OTHER_READS_BYTES = 64 * 1024  # of a turn: manifest, race report, outbox
_COUNTERS = Path("/proc/self/io")

pytestmark = pytest.mark.skipif(not _COUNTERS.exists(), reason="the kernel counts no bytes per process")


def _read_bytes() -> int:
    return int(_COUNTERS.read_text().split("rchar:")[1].split()[0])


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setattr(digests, "TURN_BYTES", _TURN_BYTES)
    rig = Rig(tmp_path).start()
    rig.launcher.serve = _honest
    rig.fleet.push(1, _SIZE_BYTES)
    return rig


def _honest(child: ScriptedChild, spec: ServeSpec) -> None:
    """Serve from the file if it is the model; reading it counts for no turn of the agent."""
    if digest_of_bytes(spec.variant_path.read_bytes()) != spec.variant_path.name:
        child.say(to_json(Failed(family="rejected", reason="this is no model")))
        child.end(1)
        return
    spec.socket_path.touch()
    child.say(to_json(Ready(load_us=1000.0, self_test=SelfTest(samples=4, passed=True, reason="equal"))))


def _counted(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows with each turn by the bytes that it read."""
    counts: list[int] = []
    turn, read_by_worker = rig.loop.turn, [0]

    def serve(child: ScriptedChild, spec: ServeSpec) -> None:
        before = _read_bytes()
        _honest(child, spec)
        read_by_worker[0] += _read_bytes() - before

    def counting(patience_s: float) -> None:
        before, read_by_worker[0] = _read_bytes(), 0
        turn(patience_s)
        counts.append(_read_bytes() - before - read_by_worker[0])

    rig.launcher.serve = serve
    monkeypatch.setattr(rig.loop, "turn", counting)
    return counts


def test_a_large_download_is_verified_in_pieces(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is read whole before it serves, and no turn reads more than its share."""
    counts = _counted(rig, monkeypatch)
    rig.fleet.assign(1)

    assert rig.run(until=rig.committed(1), seconds=120), rig.install(1)
    assert sum(counts) >= _SIZE_BYTES
    assert max(counts) <= _TURN_BYTES + _OTHER_READS_BYTES


def test_a_cut_in_the_middle_of_verifying_goes_on_where_it_was(rig: Rig) -> None:
    """A connection that never lasts as long as reading the file does not keep the version waiting for ever."""
    rig.fleet.assign(1)
    cuts = 0
    for number in range(2000):
        rig.loop.turn(0.0)
        rig.broker.deliver(rig.clock.monotonic())
        rig.fleet.answer_all()
        rig.clock.pass_by(0.05)
        if rig.fleet.sent_bytes >= _SIZE_BYTES and rig.state(1) == "downloading" and number % 8 == 0:
            rig.broker.cut(rig.device, reconnect=True)
            cuts += 1
        if rig.state(1) not in ("unknown", "assigned", "authorized", "downloading"):
            break
    else:
        pytest.fail(f"it is still being verified: {rig.install(1)}")

    assert cuts >= 2
    assert rig.run(until=rig.committed(1), seconds=120), rig.install(1)


def test_a_rotten_file_is_found_in_pieces(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker is not started again before its files have been read, and no turn reads more than its share."""
    rig.fleet.assign(1)
    assert rig.run(until=rig.committed(1), seconds=120), rig.install(1)
    (child,) = rig.launcher.alive("worker:")
    model = max((rig.config.state_dir / "blobs").iterdir(), key=lambda path: path.stat().st_size)
    model.write_bytes(b"\0" * _SIZE_BYTES)
    counts = _counted(rig, monkeypatch)
    child.end(-9)

    assert rig.run(until=rig.committed(1), seconds=120), rig.install(1)
    assert digest_of_bytes(model.read_bytes()) == model.name
    assert max(counts) <= _TURN_BYTES + _OTHER_READS_BYTES


def test_many_files_are_collected_over_several_turns(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn deletes a bounded number of files; what is left over goes in the next ones."""
    monkeypatch.setattr(store, "MAX_COLLECTED", 5)
    blobs = rig.config.state_dir / "blobs"
    for number in range(23):
        (blobs / digest_of_bytes(str(number).encode())).write_bytes(b"left over")
    rig.fleet.assign(1)
    lengths = [len(list(blobs.iterdir()))]
    for _ in range(400):
        rig.loop.turn(0.0)
        lengths.append(len(list(blobs.iterdir())))
        rig.broker.deliver(rig.clock.monotonic())
        rig.fleet.answer_all()
        rig.clock.pass_by(0.05)

    assert min(later - before for before, later in itertools.pairwise(lengths)) == -5
    assert {path.name for path in blobs.iterdir()} == {
        file.digest
        for file in rig.loop._parts.store.manifest(rig.install(1).ref).files()  # type: ignore[union-attr]
    }


def test_a_turn_at_rest_looks_at_the_world_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planning, reporting and the wait share one look at the run folder and the free space, and read no model file."""
    rig.fleet.assign(1)
    assert rig.run(until=rig.committed(1), seconds=120), rig.install(1)
    rig.run(seconds=5)
    looks: list[str] = []
    for owner, names in ((WorkerPool, ("links", "shadows", "free_bytes")), (store.Store, ("free_bytes", "look"))):
        for name in names:
            _note(monkeypatch, looks, owner, name)
    rig.loop.turn(0.0)
    wait_s = rig.loop._patience()

    assert wait_s > 0
    assert sorted(looks) == ["Store.free_bytes", "WorkerPool.free_bytes", "WorkerPool.links", "WorkerPool.shadows"]


def test_a_report_says_what_is_so_after_the_steps_of_its_turn(rig: Rig) -> None:
    """What a step did is looked at before it is told: a version on trial serves in the first report of that."""
    rig.fleet.assign(1)
    assert rig.run(until=rig.committed(1), seconds=120), rig.install(1)
    rig.run(seconds=2)
    models = [model for report in rig.fleet.reports for model in report.models]
    serving = [model.serving for model in models if model.state in ("on_trial", "committed")]

    assert serving
    assert all(serving)


def _note(patch: pytest.MonkeyPatch, looks: list[str], owner: type, name: str) -> None:
    """Let each call of the method be noted."""
    method = getattr(owner, name)

    def noted(self: object, *arguments: object) -> object:
        looks.append(f"{owner.__name__}.{name}")
        return method(self, *arguments)

    patch.setattr(owner, name, noted)
