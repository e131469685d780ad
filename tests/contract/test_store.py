"""The stores' promises, over SQLite in memory and in a file that is closed and opened again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from pydantic import TypeAdapter
from sqlalchemy import text

from fleet_parts import DIGITS, make_manifest
from regatta_fleet.core.gates import Baseline, Outcome, Trial
from regatta_fleet.core.rollout import Rollout, Wave
from regatta_fleet.database import devices, events, models, rollouts, telemetry, tokens
from regatta_fleet.database.engine import Database, open_database, sqlite_url
from regatta_fleet.database.tables import metadata
from regatta_fleet.schemas import GateConfig, RolloutState, WaveState
from regatta_protocol.codec import encode
from regatta_protocol.errors import Misuse, Retryable
from regatta_protocol.ids import DeviceId, ModelRef, digest_of_bytes
from regatta_protocol.measurement import BoardFacts, RaceReport
from regatta_protocol.messages import (
    DesiredModel,
    InstallState,
    ModelReport,
    Presence,
    RaceItem,
    Reported,
    TelemetryBatch,
)
from regatta_protocol.sketch import add
from regatta_protocol.values import Accuracy, ServingWindow

PI = DeviceId("pi-1")
REF = ModelRef(DIGITS, 1)
Reopen = Callable[[], Database]


@pytest.fixture(params=["memory", "file"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Reopen]:
    """Return what opens the database again: a file anew, memory as it is."""
    url = "sqlite://" if request.param == "memory" else sqlite_url(tmp_path / "fleet.sqlite")
    opened = [open_database(url)]

    def again() -> Database:
        if request.param == "file":
            opened[0].close()
            opened[0] = open_database(url)
        return opened[0]

    yield again
    opened[0].close()


def _enroll(database: Database, device: DeviceId = PI, group: str = "default") -> None:
    with database.write() as tx:
        devices.enroll_device(tx, device, group=group, board=BoardFacts(model="Pi 5"), now=1.0)


def _reported(sequence: int, *reports: ModelReport, generation: int = 1) -> Reported:
    return Reported(
        device=PI,
        generation=generation,
        sequence=sequence,
        agent_version="0.1",
        boot="b",
        bytes_received=7,
        models=reports,
    )


def test_migrations_make_the_tables(reopen: Reopen) -> None:
    """Nothing that tables.py says is missing after the migrations, nor more is there."""
    with reopen().read() as tx:
        assert compare_metadata(MigrationContext.configure(tx), metadata) == []


def test_a_device_is_kept_with_its_board(reopen: Reopen) -> None:
    """With its board and group, not revoked."""
    _enroll(reopen())
    with reopen().read() as tx:
        row = devices.get_device(tx, PI)
        members = devices.list_members(tx)
        nobody = devices.get_device(tx, DeviceId("nobody"))

    assert row is not None
    assert (row.board.model, row.group, row.revoked) == ("Pi 5", "default", False)
    assert [member.device for member in members] == [PI]
    assert nobody is None


def test_each_assignment_has_a_higher_generation(reopen: Reopen) -> None:
    """Also taking a model away; and a device that enrols anew goes on counting, with what it shall run."""
    database = reopen()
    _enroll(database)
    generations = []
    for wanted in (DesiredModel(version=1, rollout="r1"), None, DesiredModel(version=2, trial_s=9)):
        with database.write() as tx:
            devices.assign(tx, PI, DIGITS, wanted, 5.0)
            desired = devices.get_desired(tx, PI)
        assert desired is not None
        assert desired.models == ({} if wanted is None else {DIGITS: wanted})
        generations.append(desired.generation)
    _enroll(database)
    with reopen().read() as tx:
        desired = devices.get_desired(tx, PI)

    assert generations == [1, 2, 3]
    assert desired is not None
    assert (desired.generation, desired.models[DIGITS].version) == (4, 2)


def test_older_reports_are_ignored(reopen: Reopen) -> None:
    """The newest sequence number wins, whatever the order of arrival; a report replaces the one before whole."""
    database = reopen()
    _enroll(database)
    one = ModelReport(name=DIGITS, version=1, state=InstallState.COMMITTED, serving=True)
    two = ModelReport(name=DIGITS, version=2, state=InstallState.RACING)
    taken = []
    for reported in (_reported(2, one, two), _reported(1, two), _reported(2), _reported(3, one)):
        with database.write() as tx:
            taken.append(devices.record_reported(tx, reported, 9.0))
    with reopen().read() as tx:
        reports = devices.list_device_reports(tx, device=PI)
        row = devices.get_device(tx, PI)

    assert taken == [True, False, False, True]
    assert reports == ((PI, one),)
    assert row is not None
    assert (row.reported_sequence, row.bytes_received, row.last_seen) == (3, 7, 9.0)


def test_a_new_start_of_a_device_is_heard(reopen: Reopen) -> None:
    """After enrolling anew its sequence numbers begin again."""
    database = reopen()
    _enroll(database)
    with database.write() as tx:
        devices.record_reported(tx, _reported(900), 1.0)
    _enroll(database)
    with database.write() as tx:
        assert devices.record_reported(tx, _reported(0), 2.0)


def test_a_revoked_device_is_no_member(reopen: Reopen) -> None:
    """It stays in the list, marked; enrolling it anew lets it in."""
    database = reopen()
    _enroll(database)
    with database.write() as tx:
        devices.record_presence(tx, PI, Presence(up=True), 1.0)
        devices.revoke_device(tx, PI, 2.0)
    with reopen().read() as tx:
        (row,) = devices.list_devices(tx)
        assert (row.revoked, row.up) == (True, False)
        assert devices.list_members(tx) == ()
        assert devices.get_desired(tx, PI) is None
    _enroll(reopen())
    with reopen().read() as tx:
        assert len(devices.list_members(tx)) == 1


def test_presence(reopen: Reopen) -> None:
    """Changes are told; a start of the server forgets who was connected."""
    database = reopen()
    _enroll(database)
    with database.write() as tx:
        told = [devices.record_presence(tx, PI, Presence(up=up), 1.0) for up in (True, True, False, True)]
        devices.mark_all_down(tx)
        row = devices.get_device(tx, PI)

    assert told == [True, False, True, True]
    assert row is not None
    assert not row.up


def test_versions_are_seen_once_signed(reopen: Reopen) -> None:
    """A number is never given twice, and the unsigned text is kept byte by byte."""
    database = reopen()
    manifest = make_manifest(REF)
    signed_text = encode(manifest)
    with database.write() as tx:
        models.add_version(tx, manifest, signed_text.decode(), digest_of_bytes(signed_text), 1.0)
    with reopen().write() as tx:
        assert models.get_version(tx, REF) is None
        assert models.list_models(tx) == ()
        assert models.latest_version(tx, DIGITS) == 1
        assert models.list_unsigned(tx) == (signed_text,)
        models.mark_signed(tx, REF)
    with reopen().read() as tx:
        found = models.get_version(tx, REF)
        assert found is not None
        assert found.manifest == manifest
        assert models.list_models(tx)[0].versions == (1,)
        assert models.list_unsigned(tx) == ()


def test_a_rollout_is_kept_whole(reopen: Reopen) -> None:
    """With waves, trials, baselines and what devices go back to."""
    database = reopen()
    _enroll(database)
    with database.write() as tx:
        text_ = encode(make_manifest(REF)).decode()
        models.add_version(tx, make_manifest(REF), text_, digest_of_bytes(text_.encode()), 1.0)
        models.mark_signed(tx, REF)
        wave = Wave(1, WaveState.OBSERVING, (Trial(PI),), 3.0)
        rollout = Rollout("r1", REF, RolloutState.RUNNING, GateConfig(timeout_s=9), (wave,))
        rollouts.add_rollout(tx, rollouts.RolloutRow(rollout, 4.0, 2.0))
        rollouts.save_rollout(tx, rollout)
        trial = Trial(PI, Outcome.FAILED, "why", 0.5, 7.0, Baseline(3, 0.9, 8.0, "manifest"))
        rollouts.set_previous(tx, "r1", PI, 3, trial.baseline)
        rollouts.save_trial(tx, "r1", trial)
    with reopen().read() as tx:
        row = rollouts.get_rollout(tx, "r1")
        assert row is not None
        assert row.rollout.waves[0].trials == (trial,)
        assert row.rollout.waves[0].started_at == 3.0
        assert (row.rollout.gate.timeout_s, row.trial_s, row.created_at) == (9, 4.0, 2.0)
        assert rollouts.previous_versions(tx, "r1", [PI]) == {PI: 3}
        assert rollouts.find_open(tx, DIGITS) == "r1"
        assert rollouts.list_rollouts(tx, only_open=True) == (row,)


def _window(latency_us: float, **more: object) -> ServingWindow:
    counts: dict[int, int] = {}
    add(counts, latency_us, 10)
    values = {"model": "digits", "version": 1, "placement": "p", "start": 1, "stop": 2, "requests": 10, "errors": 1}
    return TypeAdapter(ServingWindow).validate_python(values | {"latency_counts": counts} | more)


def test_a_repeated_batch_counts_once_and_windows_merge(reopen: Reopen) -> None:
    """Requests add up, percentiles come from the merged sketch, feedback adds up."""
    database = reopen()
    _enroll(database)
    first = TelemetryBatch(id="batch-0001", device=PI, items=(_window(100.0), _window(100.0)))
    feedback = Accuracy(correct=3, total=4)
    second = TelemetryBatch(id="batch-0002", device=PI, items=(_window(1000.0, stop=9, feedback=feedback),))
    with database.write() as tx:
        taken = [telemetry.record_batch(tx, batch, 1.0) for batch in (first, first, second, second)]
    with reopen().read() as tx:
        summary = telemetry.serving_summaries(tx)[PI, DIGITS, 1]

    assert taken == [True, False, True, False]
    assert (summary.requests, summary.errors, summary.since, summary.until) == (30, 3, 1, 9)
    assert summary.p50_us == pytest.approx(100, rel=0.011)
    assert summary.p99_us == pytest.approx(1000, rel=0.011)
    assert summary.feedback == feedback


def test_stages_add_up_over_the_windows_that_tell_them(reopen: Reopen) -> None:
    """Most windows tell none; a stage that this server does not know, from a newer agent, is left out."""
    database = reopen()
    _enroll(database)
    counts = dict(_window(50.0).latency_counts)
    told = {"queue": counts, "compute_infer": {bucket: 2 * count for bucket, count in counts.items()}, "warp": counts}
    items = (_window(100.0), _window(100.0, stage_counts=told), _window(100.0), _window(100.0, stage_counts=told))
    with database.write() as tx:
        for number, window in enumerate(items):
            telemetry.record_batch(tx, TelemetryBatch(id=f"batch-{number:04}", device=PI, items=(window,)), 1.0)
    with reopen().read() as tx:
        stages = telemetry.serving_summaries(tx)[PI, DIGITS, 1].stages

    assert {name: stage.requests for name, stage in stages.items()} == {"queue": 20, "compute_infer": 40}
    assert stages["queue"].p50_us == pytest.approx(50, rel=0.011)


def test_a_device_cannot_grow_its_sketch_without_bound(reopen: Reopen) -> None:
    """Buckets of impossible latencies fall into the outermost ones."""
    database = reopen()
    _enroll(database)
    with database.write() as tx:
        for number in range(3):
            counts = {10**6 * number + index: 1 for index in range(4000)} | {-5: -7}
            window = _window(1.0, latency_counts=counts, stage_counts={"queue": counts})
            telemetry.record_batch(tx, TelemetryBatch(id=f"batch-{number:04}", device=PI, items=(window,)), 1.0)
        lengths = tx.execute(text("select length(latency_counts), length(stage_counts) from served")).one()

    assert max(lengths) < 40_000


def test_the_newest_races_are_kept(reopen: Reopen) -> None:
    """Newest first, at most RACES_KEPT of each model."""
    database = reopen()
    _enroll(database)
    with database.write() as tx:
        for at in range(telemetry.RACES_KEPT + 3):
            report = RaceReport(
                model="digits",
                version=at + 1,
                board=BoardFacts(),
                candidates=(),
                placement=None,
                reason="none",
                duration_s=1,
            )
            batch = TelemetryBatch(id=f"batch-{at:04}", device=PI, items=(RaceItem(at=at, report=report),))
            telemetry.record_batch(tx, batch, 1.0)
    with reopen().read() as tx:
        versions = [race.version for race in telemetry.list_races(tx, PI)]

    assert versions == list(range(telemetry.RACES_KEPT + 3, 3, -1))


def test_a_token_is_used_once(reopen: Reopen) -> None:
    """The second user hears False; what is long expired is forgotten."""
    database = reopen()
    with database.write() as tx:
        tokens.add_token(tx, "h", device=None, group="lab", now=0, expires_at=10)
        used = [tokens.use_token(tx, "h", device=PI, key_digest="k", certificate="c", now=1) for _ in range(2)]
    with reopen().read() as tx:
        row = tokens.find_token(tx, "h")
    with database.write() as tx:
        tokens.add_token(tx, "h2", device=None, group="lab", now=1e9, expires_at=2e9)
        assert tokens.find_token(tx, "h") is None

    assert used == [True, False]
    assert row is not None
    assert (row.used_by, row.key_digest, row.group) == (PI, "k", "lab")


def test_events_are_bounded_and_oldest_first(reopen: Reopen, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest stay."""
    monkeypatch.setattr(events, "MAX_EVENTS", 50)
    database = reopen()
    with database.write() as tx:
        for number in range(300):
            events.add_event(tx, float(number), "kind", f"line {number}")
    with reopen().read() as tx:
        newest = events.list_events(tx, limit=3)
        some = events.list_events(tx, since=290.0, limit=2)
        everything = events.list_events(tx, limit=1000)

    assert [event.at for event in newest] == [297, 298, 299]
    assert [event.at for event in some] == [290, 291]
    assert len(everything) <= 150


def test_a_failed_transaction_changes_nothing(reopen: Reopen) -> None:
    """All or nothing, so that a killed server decides the same again."""
    with pytest.raises(ZeroDivisionError), reopen().write() as tx:
        events.add_event(tx, 1.0, "kind", "half")
        raise ZeroDivisionError
    with reopen().read() as tx:
        assert events.list_events(tx) == ()


def test_a_database_of_a_newer_program_is_left_alone(tmp_path: Path) -> None:
    """An older server does not touch what it does not know."""
    url = sqlite_url(tmp_path / "fleet.sqlite")
    database = open_database(url)
    with database.write() as tx:
        tx.execute(text("update alembic_version set version_num = '9999'"))
    database.close()

    with pytest.raises(Misuse, match="newer Regatta"):
        open_database(url)


@pytest.mark.parametrize("url", ["nonsense", "oracle9://x/y", "postgresql+nodriver://x/y"])
def test_a_database_that_cannot_be_used(url: str) -> None:
    """The words say what to give."""
    with pytest.raises(Misuse, match="SQLAlchemy URL"):
        open_database(url)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    """It may come back (a disk that is not mounted yet)."""
    with pytest.raises(Retryable, match="unable to open"):
        open_database(sqlite_url(tmp_path / "none" / "fleet.sqlite"))
