"""The planner: it converges, never oscillates, never downgrades unasked, and tells why it waits."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from regatta_agent.core import outcomes
from regatta_agent.core.facts import (
    Advance,
    Begin,
    Cancel,
    Collect,
    Facts,
    JobKind,
    Limits,
    Point,
    Revise,
    StartWorker,
    StopWorker,
    StoredVersion,
    Unpoint,
    WorkerFacts,
)
from regatta_agent.core.installs import AgentRecord, Install, RaceSummary
from regatta_agent.core.planner import plan, wake_at
from regatta_agent.core.states import IN_PROGRESS
from regatta_protocol.errors import RegattaError, Rejected, Retryable, StorageFull, Untrusted
from regatta_protocol.ids import DeviceId, Digest, ModelName, ModelRef, digest_of_bytes
from regatta_protocol.manifest import Policy
from regatta_protocol.measurement import Accuracy, BoardFacts, CandidateResult, Latency, Outcome, RaceReport
from regatta_protocol.messages import Assignment, DesiredModel, InstallState, SignedAssignment

NAME = ModelName("digits")
LIMITS = Limits(disk_reserve_bytes=0)
IDLE = Facts(now_s=1000.0, online=True, free_bytes=10**9)
_CANDIDATE = "litert/int8/xnnpack/t1"


def digest(version: int) -> Digest:
    return digest_of_bytes(b"%d" % version)


def wanting(record: AgentRecord, version: int | None, rollout: str | None = "r") -> AgentRecord:
    """Return the record after the fleet asked for `version`."""
    models = {} if version is None else {NAME: DesiredModel(version=version, rollout=rollout)}
    assignment = Assignment(
        fleet="f", device=DeviceId("d"), generation=record.generation + 1, issued_at=0.0, models=models
    )
    return outcomes.take_up(record, SignedAssignment(payload="", key_id="k", signature="s"), assignment)


def settled(record: AgentRecord, facts: Facts) -> tuple[AgentRecord, list[object]]:
    """Return the record after all recorded steps, and the other steps of the last plan."""
    for _ in range(50):
        steps = plan(record, facts, LIMITS)
        recorded = [step for step in steps if isinstance(step, Advance | Revise)]
        if not recorded:
            return record, list(steps)
        for step in recorded:
            if isinstance(step, Advance):
                record = record.advanced(step.ref, step.event, **step.changes)
            else:
                record = record.changed(step.ref, **step.changes)
    raise AssertionError(f"the plan does not settle: {recorded}")


def an_install(version: int, state: InstallState, accuracy: float | None = None, **fields: object) -> Install:
    measured = Accuracy(correct=round(accuracy * 100), total=100) if accuracy is not None else None
    race = RaceSummary(placement=_CANDIDATE, ranked=(_CANDIDATE,), accuracy=measured)
    values = {"manifest_digest": digest(version), "race": race, "placement": _CANDIDATE, "rollout": "r", **fields}
    return Install(name=NAME, version=version, state=state, **values)


def on_disk(*versions: int, missing_bytes: int = 0) -> dict[ModelRef, StoredVersion]:
    missing = 1 if missing_bytes else 0
    return {ModelRef(NAME, v): StoredVersion(digest(v), missing, missing_bytes) for v in versions}


def test_a_new_version_is_assigned_and_its_metadata_asked_for() -> None:
    """The first step of an install is to ask what is signed."""
    record, steps = settled(wanting(AgentRecord(), 1), IDLE)

    assert record.all().__next__().state is InstallState.ASSIGNED
    assert Begin(ModelRef(NAME, 1), JobKind.AUTHORIZE) in steps


def test_offline_nothing_is_asked_and_the_reason_says_so() -> None:
    """A wait has a reason."""
    record, steps = settled(wanting(AgentRecord(), 1), replace(IDLE, online=False))

    assert "offline" in (record.all().__next__().reason or "")
    assert not [step for step in steps if isinstance(step, Begin)]


def test_a_download_that_does_not_fit_waits_with_both_figures_and_does_not_repeat_itself() -> None:
    """Free space that changes is no news, so that a full disk is not written to again and again."""
    record = wanting(AgentRecord().with_install(an_install(1, InstallState.DOWNLOADING)), 1)
    facts = replace(IDLE, stored=on_disk(1, missing_bytes=14_000_000), free_bytes=3_000_000)
    record, steps = settled(record, facts)

    assert "needs 14 MB" in (record.all().__next__().reason or "")
    assert "3 MB free" in (record.all().__next__().reason or "")
    again, _ = settled(record, replace(facts, free_bytes=2_500_000))
    assert again == record
    assert not [step for step in steps if isinstance(step, Begin)]


def test_a_clock_that_jumped_back_does_not_hold_a_retry_for_years() -> None:
    """A back-off that lies absurdly far off is over."""
    record = wanting(AgentRecord().with_install(an_install(1, InstallState.ASSIGNED, not_before=9e9)), 1)

    _, steps = settled(record, IDLE)

    assert Begin(ModelRef(NAME, 1), JobKind.AUTHORIZE) in steps


def test_the_link_moves_before_the_old_worker_is_stopped() -> None:
    """The order of the swap leaves no gap."""
    record = AgentRecord().with_install(an_install(1, InstallState.COMMITTED))
    record = wanting(record.with_install(an_install(2, InstallState.COMMITTED)), 2)
    worker = WorkerFacts(_CANDIDATE, ready=True, ready_for_s=9.0, socket="two")
    facts = replace(
        IDLE,
        stored=on_disk(1, 2),
        workers={ModelRef(NAME, 1): replace(worker, socket="one"), ModelRef(NAME, 2): worker},
        links={NAME: "one"},
    )
    record, steps = settled(record, facts)

    kinds = [type(step) for step in steps]
    assert kinds.index(Point) < kinds.index(StopWorker)
    assert StopWorker(ModelRef(NAME, 1)) in steps


def test_a_lost_file_of_the_committed_version_is_fetched_again() -> None:
    """A hole in the disk heals itself."""
    record = wanting(AgentRecord().with_install(an_install(1, InstallState.COMMITTED)), 1)

    record, steps = settled(record, replace(IDLE, stored=on_disk(1, missing_bytes=5)))

    assert Begin(ModelRef(NAME, 1), JobKind.AUTHORIZE) in steps


def test_wake_at_gives_the_end_of_the_next_wait() -> None:
    """The loop sleeps no longer than to the next thing due."""
    record = wanting(AgentRecord().with_install(an_install(1, InstallState.ASSIGNED, not_before=1030.0)), 1)

    assert wake_at(record, IDLE) == 1030.0
    assert wake_at(AgentRecord(), IDLE) is None


def test_nothing_is_collected_before_the_fleet_was_heard() -> None:
    """After a lost record, files on disk are not thrown away."""
    assert not [step for step in plan(AgentRecord(), IDLE, LIMITS) if isinstance(step, Collect)]


_ERRORS = (Retryable("busy"), Rejected("no"), Untrusted("expired"), StorageFull("full"))


class _World:
    """A device in which every job, worker and wish of the fleet goes as hypothesis says."""

    def __init__(self, draw: Random) -> None:
        self.draw = draw
        self.record = AgentRecord()
        self.facts = IDLE

    def step(self) -> None:
        self.record, steps = settled(self.record, self.facts)
        jobs, workers, links = dict(self.facts.jobs), dict(self.facts.workers), dict(self.facts.links)
        for step in steps:
            if isinstance(step, Begin):
                assert step.ref not in jobs
                jobs[step.ref] = step.kind
            elif isinstance(step, Cancel):
                del jobs[step.ref]
            elif isinstance(step, StartWorker):
                assert step.ref not in workers
                workers[step.ref] = WorkerFacts(step.candidate, False, 0.0, f"s{step.ref.version}")
            elif isinstance(step, StopWorker):
                del workers[step.ref]
            elif isinstance(step, Point):
                links[NAME] = step.socket
            elif isinstance(step, Unpoint):
                links.pop(NAME)
            elif isinstance(step, Collect):
                stored = {ref: kept for ref, kept in self.facts.stored.items() if ref in step.keep}
                self.facts = replace(self.facts, stored=stored, collected=step.keep)
        self.facts = replace(self.facts, jobs=jobs, workers=workers, links=links, now_s=self.facts.now_s + 400.0)

    def go_on(self, luck: float) -> None:
        """End every job and age every worker; with chance 1 - `luck` each goes wrong."""
        for ref, kind in list(self.facts.jobs.items()):
            self.facts = replace(self.facts, jobs={r: k for r, k in self.facts.jobs.items() if r != ref})
            if self.draw.random() > luck:
                error: RegattaError = self.draw.choice(_ERRORS)
                self.record = outcomes.failed(self.record, ref, error, self.facts.now_s, self.draw, LIMITS)
            else:
                self._succeed(ref, kind)
        workers = {}
        for ref, worker in self.facts.workers.items():
            if self.draw.random() > luck:
                self.record = outcomes.worker_died(
                    self.record, ref, "signal 11", 1.0, self.facts.now_s, self.draw, LIMITS
                )
            else:
                workers[ref] = replace(worker, ready=True, ready_for_s=worker.ready_for_s + 10.0)
        self.facts = replace(self.facts, workers=workers)

    def _succeed(self, ref: ModelRef, kind: JobKind) -> None:
        if kind is JobKind.AUTHORIZE:
            self.record = outcomes.authorized(self.record, ref, digest(ref.version), 9, {"timestamp": 1})
        elif kind is JobKind.MANIFEST:
            self._store(ref, missing=1)
            self.record = outcomes.manifest_stored(self.record, ref)
        elif kind is JobKind.FILES:
            self._store(ref, missing=0)
        else:
            latency = Latency(samples=1, p50_us=1, p90_us=1, p99_us=1)
            winner = CandidateResult(
                id=_CANDIDATE, runtime="litert", variant="int8", delegate="xnnpack", threads=1,
                outcome=Outcome.MEASURED, latency=latency,
            )  # fmt: skip
            report = RaceReport(
                model=NAME, version=ref.version, board=BoardFacts(), candidates=(winner,), placement=winner.id,
                reason="fastest", duration_s=1.0,
            )  # fmt: skip
            self.record = outcomes.raced(self.record, report, ref, Policy())

    def _store(self, ref: ModelRef, missing: int) -> None:
        stored = {**self.facts.stored, ref: StoredVersion(digest(ref.version), missing, missing)}
        self.facts = replace(self.facts, stored=stored)


def committed(record: AgentRecord) -> set[int]:
    return {one.version for one in record.all() if one.state is InstallState.COMMITTED}


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    wishes=st.lists(st.tuples(st.one_of(st.none(), st.integers(1, 3)), st.sampled_from(["r1", "r2"])), max_size=6),
)
def test_it_converges_on_whatever_the_fleet_wants_last(seed: int, wishes: list[tuple[int | None, str]]) -> None:
    """After any history of wishes and failures: the last wish is committed, or it ended with a reason; then quiet."""
    world = _World(Random(seed))
    world.record = wanting(world.record, 1, "r0")
    for version, rollout in wishes:
        for _ in range(world.draw.randrange(6)):
            before = committed(world.record)
            wanted = world.record.desired_version(NAME)
            world.step()
            world.go_on(luck=0.6)
            assert committed(world.record) - before <= {wanted}, "a version was committed that nobody asked for"
        world.record = wanting(world.record, version, rollout)
    for _ in range(40):
        world.step()
        world.go_on(luck=1.0)
    world.step()
    quiet = world.record
    for _ in range(3):
        world.step()
        world.go_on(luck=1.0)

    assert world.record == quiet, "it oscillates"
    assert not world.facts.jobs
    assert not [one for one in quiet.all() if one.state in IN_PROGRESS]
    last = quiet.desired_version(NAME)
    if last is None:
        assert not world.facts.workers and not world.facts.links
        return
    found = quiet.find(ModelRef(NAME, last))
    assert found is not None
    assert found.state is InstallState.COMMITTED or found.reason
    serving = quiet.serving(NAME)
    assert [ref.version for ref in world.facts.workers] == ([serving.version] if serving is not None else [])
