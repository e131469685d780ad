"""The planner in a world where every job, worker and wish goes as it likes: it converges, and then it is quiet."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from planning import IDLE, LIMITS, NAME, a_report, digest, settled, wanting
from regatta_agent.core import outcomes, rerace, worker_outcomes
from regatta_agent.core.facts import (
    Begin,
    Cancel,
    Collect,
    JobKind,
    Point,
    StartWorker,
    StopWorker,
    StoredVersion,
    Unpoint,
    WorkerFacts,
)
from regatta_agent.core.installs import AgentRecord, Degradation
from regatta_agent.core.states import IN_PROGRESS
from regatta_protocol.errors import RegattaError, Rejected, Retryable, StorageFull, Untrusted
from regatta_protocol.ids import ModelRef
from regatta_protocol.manifest import Policy
from regatta_protocol.messages import InstallState
from regatta_protocol.update_window import UpdateWindow, next_opening, parse_window

EVERY_OTHER_HOUR = tuple(parse_window(f"{hour:02}:00-{hour + 1:02}:00 UTC") for hour in range(0, 24, 2))
_ERRORS = (Retryable("busy"), Rejected("no"), Untrusted("expired"), StorageFull("full"))


class _World:
    """A device in which every job, worker and wish of the fleet goes as hypothesis says."""

    def __init__(self, draw: Random, window: tuple[UpdateWindow, ...] = ()) -> None:
        self.draw = draw
        budget = draw.choice((0, 10**6))
        self.limits = replace(LIMITS, update_window=window, disk_budget_bytes=budget)
        self.record = AgentRecord()
        self.facts = IDLE
        self.workers: list[tuple[ModelRef, WorkerFacts]] = []  # in the order they were started
        self.started = 0
        self.boots = 0

    def reboot(self) -> None:
        """End the board, whatever goes on, and start the agent in another run of the kernel."""
        self.boots += 1
        self.workers = []
        self.facts = replace(self.facts, jobs={}, links={}, running_s=0.0, boot=f"boot {self.boots}")
        self.record = outcomes.recovered(self.record, self.limits, self.facts.boot)
        self._show_workers()

    def step(self) -> None:
        before = on_trial(self.record)
        self.record, steps = settled(self.record, self.facts, self.limits)
        closed = next_opening(self.limits.update_window, self.facts.now_s) is not None
        if closed and committed(self.record):
            assert on_trial(self.record) <= before, "a version took over outside of the window"
            assert not [one for one in steps if isinstance(one, Begin) and one.kind is JobKind.RERACE]
        jobs, links = dict(self.facts.jobs), dict(self.facts.links)
        for step in steps:
            if isinstance(step, Begin):
                assert step.ref not in jobs
                jobs[step.ref] = step.kind
            elif isinstance(step, Cancel):
                del jobs[step.ref]
            elif isinstance(step, StartWorker):
                assert (step.ref, step.candidate) not in [(ref, one.candidate) for ref, one in self.workers]
                self.started += 1
                self.workers.append((step.ref, WorkerFacts(step.candidate, False, 0.0, f"s{self.started}")))
            elif isinstance(step, StopWorker):
                told = (step.ref, step.socket)
                assert links.get(NAME) != step.socket or not self.record.serving(NAME), "what serves was stopped"
                self.workers = [(ref, one) for ref, one in self.workers if (ref, one.socket) != told]
            elif isinstance(step, Point):
                links[NAME] = step.socket
            elif isinstance(step, Unpoint):
                links.pop(NAME)
            elif isinstance(step, Collect):
                stored = {ref: kept for ref, kept in self.facts.stored.items() if ref in step.keep}
                self.facts = replace(self.facts, stored=stored, collected=step.keep)
        self.facts = replace(self.facts, jobs=jobs, links=links, now_s=self.facts.now_s + 400.0)
        self.facts = replace(self.facts, running_s=self.facts.running_s + 400.0)
        self._show_workers()
        for one in self.record.all():
            if one.state in IN_PROGRESS and one.ref not in {*jobs, *(ref for ref, _ in self.workers)}:
                assert one.reason, f"{one.ref} waits and does not say for what: {one.state}"

    def _show_workers(self) -> None:
        first: dict[ModelRef, WorkerFacts] = {}
        second: dict[ModelRef, WorkerFacts] = {}
        for ref, worker in self.workers:
            assert ref not in second, "three workers of one version"
            (second if ref in first else first)[ref] = worker
        self.facts = replace(self.facts, workers=first, successors=second)

    def go_on(self, luck: float) -> None:
        """End every job and age every worker; with chance 1 - `luck` each goes wrong."""
        for ref, kind in list(self.facts.jobs.items()):
            self.facts = replace(self.facts, jobs={r: k for r, k in self.facts.jobs.items() if r != ref})
            if self.draw.random() > luck:
                error: RegattaError = self.draw.choice(_ERRORS)
                if kind is JobKind.RERACE:
                    self.record = rerace.rerace_failed(self.record, ref, error)
                else:
                    self.record = outcomes.failed(self.record, ref, error, self.facts.now_s, self.draw, LIMITS)
            else:
                self._succeed(ref, kind)
        workers = []
        for ref, worker in self.workers:
            if self.draw.random() <= luck:
                older = replace(worker, ready=True, ready_for_s=worker.ready_for_s + 10.0)
                workers.append((ref, self._talk(ref, older, luck)))
                continue
            install = self.record.find(ref)
            if install is not None and install.successor is not None and worker.candidate != install.placement:
                self.record = rerace.successor_died(self.record, ref, "signal 11")
            else:
                self.record = worker_outcomes.worker_died(
                    self.record, ref, "signal 11", 1.0, self.facts.now_s, self.draw, LIMITS
                )
        self.workers = workers
        self._show_workers()

    def _talk(self, ref: ModelRef, worker: WorkerFacts, luck: float) -> WorkerFacts:
        """Let a worker say that it is degraded, recovered or drifting, as `luck` has it."""
        install = self.record.find(ref)
        if install is None or install.winner is None:
            return worker
        if install.successor is not None and worker.candidate == install.successor.placement:
            return worker  # it speaks of its own winner, and that is not the record's yet
        if self.draw.random() > luck:
            told = Degradation(placement="litert/int8/none/t1", reason="hung", since=self.facts.now_s)
            self.record = worker_outcomes.degraded(self.record, ref, told, (self.facts.now_s,))
            self.record = rerace.drifted(self.record, ref, worker.candidate, 10.0, 20.0)
        elif install.degraded is not None:
            self.record = worker_outcomes.winner_back(self.record, ref, install.winner, (self.facts.now_s,))
            return replace(worker, candidate=install.winner)
        return worker

    def _succeed(self, ref: ModelRef, kind: JobKind) -> None:
        if kind is JobKind.AUTHORIZE:
            self.record = outcomes.authorized(self.record, ref, digest(ref.version), 9, {"timestamp": 1})
        elif kind is JobKind.MANIFEST:
            self._store(ref, missing=1)
            self.record = outcomes.manifest_stored(self.record, ref)
        elif kind is JobKind.FILES:
            self._store(ref, missing=0)
        else:
            report = a_report(ref.version, xnnpack=self.draw.choice((1.0, 9.0)), none=3.0)
            summary = outcomes.summary_of(report, Policy(), self.facts.versions, self.facts.now_s)
            if kind is JobKind.RERACE:
                self.record = rerace.reraced(self.record, ref, report, summary)
            else:
                self.record = outcomes.raced(self.record, report, ref, summary)

    def _store(self, ref: ModelRef, missing: int) -> None:
        stored = {**self.facts.stored, ref: StoredVersion(digest(ref.version), missing, missing)}
        self.facts = replace(self.facts, stored=stored)


def committed(record: AgentRecord) -> set[int]:
    return {one.version for one in record.all() if one.state is InstallState.COMMITTED}


def on_trial(record: AgentRecord) -> set[int]:
    return {one.version for one in record.all() if one.state is InstallState.ON_TRIAL}


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    windows=st.booleans(),
    reboots=st.sampled_from([0.0, 0.3, 0.9]),
    wishes=st.lists(st.tuples(st.one_of(st.none(), st.integers(1, 3)), st.sampled_from(["r1", "r2"])), max_size=6),
)
def test_it_converges_on_whatever_the_fleet_wants_last(
    seed: int, windows: bool, reboots: float, wishes: list[tuple[int | None, str]]
) -> None:
    """After any history of wishes and failures: the last wish is committed, or it ended with a reason; then quiet.

    With boards that end at any time, and with update windows, too: nothing takes over outside of them while another
    version serves.
    """
    world = _World(Random(seed), EVERY_OTHER_HOUR if windows else ())
    world.record = wanting(world.record, 1, "r0")
    served: set[int | None] = set()  # these may serve again when the next one is given up
    for version, rollout in wishes:
        world.facts = replace(world.facts, versions={"litert": str(world.draw.randrange(2))})
        for _ in range(world.draw.randrange(16 if reboots else 6)):
            before = committed(world.record)
            wanted = world.record.desired_version(NAME)
            if world.draw.random() < reboots:
                world.reboot()
            world.step()
            world.go_on(luck=0.6)
            asked = {wanted} | served
            assert committed(world.record) - before <= asked, "a version was committed that nobody asked for"
            served |= committed(world.record)
        world.record = wanting(world.record, version, rollout)
    for _ in range(70):  # longer than the interval between races
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
