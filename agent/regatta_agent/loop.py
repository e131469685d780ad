"""The loop: the only owner of the agent's state, in one thread.

    inbox -> take in one event -> record (persisted) -> plan -> steps -> actions; then report what changed

Invariants:
- Nothing is done about a change of the record before the change is on disk. While the disk takes none, only steps
  that need no record are carried out: workers, links, cancelling, and deleting what nobody needs.
- Every turn is bounded: at most a full inbox is taken in, files are read and deleted in pieces, and planning must run
  out of recorded steps.
- What the board lacks for a while (space, descriptors, memory) costs a turn's plan or a step, told once, and no more.
- The watchdog is fed and the alarm put off here and nowhere else.
"""

from __future__ import annotations

import logging
import queue
from collections.abc import Mapping
from dataclasses import dataclass, replace
from random import Random

from regatta_agent.actions import Actions
from regatta_agent.alarm import Alarm
from regatta_agent.batch_runner import BatchRunner
from regatta_agent.clock import Clock, FlooredClock
from regatta_agent.core import batches, outcomes, rerace
from regatta_agent.core.facts import (
    Advance,
    Begin,
    Cancel,
    Collect,
    Facts,
    JobKind,
    Limits,
    Revise,
    Step,
    StoredVersion,
)
from regatta_agent.core.installs import AgentRecord, Degradation
from regatta_agent.core.planner import plan, wake_at
from regatta_agent.core.windows import unreadable
from regatta_agent.courier import Courier
from regatta_agent.desired import DesiredState
from regatta_agent.events import ChildEnded, ChildLine, Event
from regatta_agent.jobs import (
    AssignmentVerified,
    Authorized,
    Failed,
    FilesChecked,
    ManifestFetched,
    Outcome,
    Raced,
)
from regatta_agent.keeping import Keeper
from regatta_agent.quarantine_file import QuarantineFile
from regatta_agent.record import RecordFile
from regatta_agent.renewing import Renewing
from regatta_agent.reporter import Reporter
from regatta_agent.results_sender import ResultsSender
from regatta_agent.serving.events import Drifted, Recovered
from regatta_agent.status import StatusFile
from regatta_agent.store import Store
from regatta_agent.traffic import TrafficBook
from regatta_agent.workers import WorkerDeath, WorkerNews, WorkerPool
from regatta_protocol.bus import Bus, Connected, Disconnected, Message, Published
from regatta_protocol.errors import Exhausted, Misuse, Rejected, StorageFull
from regatta_protocol.ids import ModelRef
from regatta_protocol.messages import RaceItem, ServingWindow
from regatta_provisioning.notify import Notifier

__all__ = ["Loop", "Parts"]

logger = logging.getLogger(__name__)

_LONGEST_TURN_S = 1.0  # between looks at deadlines
_TICKING = (JobKind.MANIFEST, JobKind.FILES, JobKind.CHECK)  # jobs that go on by themselves
_FETCHING_TURN_S = 0.1  # lost chunks are noticed after 0.5 s or more (core/transfer.py)
_MAX_EVENTS = 256  # taken in before planning
_MAX_PLANS = 200  # in one turn; each records at least one step, and no version takes more than about 12


@dataclass(frozen=True)
class Parts:
    """What the loop is built of (bootstrap.py builds it)."""

    inbox: queue.Queue[Event]
    bus: Bus
    clock: Clock
    rng: Random
    limits: Limits
    record_file: RecordFile
    store: Store
    workers: WorkerPool
    actions: Actions
    desired: DesiredState
    courier: Courier
    reporter: Reporter
    quarantine: QuarantineFile
    renewing: Renewing
    batch: BatchRunner
    results: ResultsSender
    notifier: Notifier
    alarm: Alarm
    traffic: TrafficBook
    status: StatusFile
    versions: Mapping[str, str]  # of runtimes, drivers and kernel


class Loop:
    """The agent at work."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._time = FlooredClock(parts.clock)
        self.record = AgentRecord()
        self.online = False
        self._offline: str | None = None  # why, as the bus last said
        self._began_s = parts.clock.monotonic()
        self._offline_since_s: float | None = self._began_s
        self.stopping: str | None = None  # why; a signal handler sets it, and the loop ends within a turn
        self._keeper = Keeper(parts.record_file, parts.store, parts.clock, parts.limits.space_wait_s)
        self._trouble: str | None = None  # what kept this turn from planning or acting
        self._told: str | None = None  # of it, in the log
        self._stored: dict[ModelRef, StoredVersion | None] = {}

    def run(self) -> None:
        """Work until `stopping` is set."""
        self.start()
        while self.stopping is None:
            self.turn(self._patience())
        self.stop()

    def start(self) -> None:
        """Take up the work where it was left, and serve at once what the disk knows; the network may come later.

        Raises:
            Misuse: when the certificates cannot be read, and there is nothing to serve without them either.
        """
        parts = self._parts
        parts.store.prepare()
        parts.workers.prepare()
        # A first start, or a record that was lost, counts from the time: the fleet takes no number that it has had. In
        # milliseconds, which outrun UNSAVED_REPORTS within a restart.
        self.record = outcomes.recovered(self._keeper.load(int(self.wall() * 1000)), parts.limits)
        self._settle()
        parts.status.say(self.online, None, None, self._offline_since_s)
        self._connect()
        parts.notifier.ready()
        logger.info("event=started generation=%d versions=%d", self.record.generation, len(list(self.record.all())))

    def turn(self, patience_s: float) -> None:
        """Take in what has come (waiting up to `patience_s` for the first), and act on it."""
        events, self._trouble = 0, None
        self._parts.store.digests.new_turn()
        while events < _MAX_EVENTS:
            try:
                event = self._parts.inbox.get(timeout=patience_s) if patience_s > 0 else self._parts.inbox.get_nowait()
            except queue.Empty:
                break
            self._take_in(event)
            events += 1
            patience_s = 0.0
            if isinstance(event, Connected):
                break  # what goes on must begin again first: chunks that were on their way may be next in the line
        self._look_at_deadlines()
        self._settle()
        self._tend_batch()
        self._report()
        self._tell_trouble()
        self._parts.status.say(self.online, self._parts.desired.refused, self._offline, self._offline_since_s)
        self._parts.notifier.alive(f"generation {self.record.generation}, {'online' if self.online else 'offline'}")
        self._parts.alarm.put_off()

    def stop(self) -> None:
        """End cleanly: presence down, workers drained, everything kept."""
        parts = self._parts
        logger.info("event=stopping reason=%s", self.stopping)
        parts.notifier.stopping()
        parts.actions.cancel_all()
        parts.desired.cancel()
        parts.renewing.cancel()
        parts.batch.cancel()
        parts.results.cancel()
        parts.workers.stop_all(parts.clock.monotonic())
        while parts.workers.running():
            try:
                event = parts.inbox.get(timeout=_LONGEST_TURN_S)
            except queue.Empty:
                parts.workers.tick(parts.clock.monotonic())
                continue
            if isinstance(event, ChildLine | ChildEnded):
                self._hear_worker(event)
        self._keeper.keep(self.record)
        parts.courier.flush(parts.clock.monotonic(), self.online)
        parts.bus.stop()
        parts.traffic.close()
        parts.status.clear()

    def wall(self) -> float:
        """Return seconds since 1970, never below what is known for sure to be past."""
        return self._time.wall(self.record.time_floor)

    def facts(self) -> Facts:
        """Return the world as it is now."""
        parts = self._parts
        now_s = parts.clock.monotonic()
        for install in self.record.all():
            if install.ref not in self._stored:
                self._stored[install.ref] = parts.store.look(install.ref)
        return Facts(
            now_s=self.wall(),
            online=self.online,
            clock_unset=self._time.is_unset(self.record.time_floor),
            running_s=now_s - self._began_s,
            free_bytes=parts.store.free_bytes(),
            run_free_bytes=parts.workers.free_bytes(),
            stored={ref: stored for ref, stored in self._stored.items() if stored is not None},
            jobs=parts.actions.kinds(),
            workers=parts.workers.facts(now_s),
            successors=parts.workers.successors(now_s),
            versions=parts.versions,
            links=parts.workers.links(),
            shadows=parts.workers.shadows(),
            collected=parts.actions.collected,
        )

    def _space_bytes(self) -> int:
        """Return what is free in both folders that a job writes to: with more than that, a full one is tried again."""
        return self._parts.store.free_bytes() + self._parts.workers.free_bytes()

    def _connect(self) -> None:
        try:
            self._parts.bus.start()
        except Misuse as err:  # a damaged certificate is the operator's to mend, and no fault of the model that serves
            if not any(self.record.serving(name) for name in self.record.installs):
                raise
            self._offline = str(err)
            logger.error("event=offline_for_good reason=%s action=serving_what_is_here", err)

    def _take_in(self, event: Event) -> None:
        """Let one event change the record, in memory. `_settle` persists it before anything is done about it."""
        parts = self._parts
        now_s = parts.clock.monotonic()
        if isinstance(event, Connected):
            self._connected()
        elif isinstance(event, Disconnected):
            self._disconnected(event)
        elif isinstance(event, Published):
            parts.courier.acknowledged(event.token)
        elif isinstance(event, Message):
            received = self.record.bytes_received + len(event.payload)
            self.record = self.record.model_copy(update={"bytes_received": received})
            parts.desired.offer(event, self.record, now_s)
        else:
            self._hear_worker(event)
        parts.renewing.handle(event, now_s)
        self._note_batch(parts.batch.handle(event, now_s))
        parts.results.handle(event, now_s)
        verified = parts.desired.handle(event, self.record, now_s)
        if verified is not None:
            self._take_up(verified)
        for ref, outcome in parts.actions.handle(event, now_s):
            self._conclude(ref, outcome)

    def _connected(self) -> None:
        if not self.online:
            logger.info("event=online")
        self.online = True
        self._offline, self._offline_since_s = None, None
        self._parts.reporter.connected()

    def _disconnected(self, event: Disconnected) -> None:
        if event.reason != self._offline:
            logger.warning("event=offline reason=%s", event.reason)
        if self.online:
            self._offline_since_s = self._parts.clock.monotonic()
        self.online = False
        self._offline = event.reason
        self._parts.actions.went_offline()
        self._stored.clear()  # how much of a download is kept has changed

    def _hear_worker(self, event: ChildLine | ChildEnded) -> None:
        result = self._parts.workers.handle(event, self._parts.clock.monotonic())
        if isinstance(result, ServingWindow):
            self._parts.courier.keep(result)
        elif isinstance(result, WorkerDeath):
            self._mourn(result)
        elif isinstance(result, WorkerNews):
            self._note(result)

    def _note(self, news: WorkerNews) -> None:
        """Write into the record which candidate serves, and why."""
        said = news.said
        if isinstance(said, Recovered):
            logger.info("event=recovered version=%s placement=%s", news.ref, said.placement)
            self._parts.quarantine.absolve(self._parts.store.race(news.ref), said.placement)
            self.record = outcomes.winner_back(self.record, news.ref, said.placement, said.retried)
            return
        if isinstance(said, Drifted):
            logger.warning(
                "event=drifted version=%s found_us=%.0f raced_us=%.0f", news.ref, said.found_us, said.expected_us
            )
            self.record = rerace.drifted(self.record, news.ref, said.placement, said.expected_us, said.found_us)
            return
        told = Degradation(placement=said.placement, reason=said.reason, since=said.since)
        logger.warning("event=degraded version=%s placement=%s reason=%s", news.ref, said.placement, said.reason)
        if said.crashed:
            self._parts.quarantine.strike(self._parts.store.race(news.ref), said.winner, said.reason)
        self.record = outcomes.degraded(self.record, news.ref, told, said.retried)

    def _mourn(self, death: WorkerDeath) -> None:
        self._stored.pop(death.ref, None)
        parts = self._parts
        if death.lack is not None:
            self.record = outcomes.starved(
                self.record, death.ref, death.lack, self.wall(), parts.rng, parts.limits, self._space_bytes()
            )
            return
        install = self.record.find(death.ref)
        first = install is not None and install.deaths <= 1  # not each time: it reads every file
        if not (death.unready and first and parts.actions.check(death, parts.clock.monotonic())):
            self._bury(death)

    def _bury(self, death: WorkerDeath) -> None:
        """Write into the record what the end of a worker means."""
        install = self.record.find(death.ref)
        successor = install.successor if install is not None else None
        if install is not None and successor is not None and death.candidate != install.placement:
            self.record = rerace.successor_died(self.record, death.ref, death.why)
            return
        self.record = outcomes.worker_died(
            self.record, death.ref, death.why, death.lived_s, self.wall(), self._parts.rng, self._parts.limits
        )

    def _take_up(self, verified: AssignmentVerified) -> None:
        before = self.record.generation
        self.record = outcomes.take_up(self.record, verified.signed, verified.assignment)
        if self.record.generation != before:
            logger.info("event=assigned generation=%d", self.record.generation)
            for reason in unreadable(verified.assignment):
                logger.warning("event=update_window_unreadable action=not_waited_for reason=%s", reason)

    def _conclude(self, ref: ModelRef, outcome: Outcome) -> None:
        """Write what came of a job into the record."""
        self._stored.pop(ref, None)
        if isinstance(outcome, Authorized):
            self._learn_root(outcome.root_version)
            self.record = outcomes.authorized(
                self.record, ref, outcome.digest, outcome.size_bytes, outcome.role_versions
            )
        elif isinstance(outcome, ManifestFetched):
            self.record = outcomes.manifest_stored(self.record, ref)
        elif isinstance(outcome, FilesChecked):
            self._bury(outcome.death)
        elif isinstance(outcome, Raced):
            self._take_result(ref, outcome)
        elif isinstance(outcome, Failed):
            self._learn_root(outcome.root_version)
            logger.warning("event=job_failed version=%s error=%s", ref, outcome.error)
            parts = self._parts
            install = self.record.find(ref)
            if install is not None and install.racing_again:
                self.record = rerace.rerace_failed(self.record, ref, outcome.error)
                return
            self.record = outcomes.failed(
                self.record, ref, outcome.error, self.wall(), parts.rng, parts.limits, self._space_bytes()
            )

    def _learn_root(self, root_version: int | None) -> None:
        if root_version is not None and root_version > self.record.root_version:
            self.record = self.record.model_copy(update={"root_version": root_version})

    def _take_result(self, ref: ModelRef, result: Raced) -> None:
        report, assigned = result.report, result.assigned
        summary = outcomes.summary_of(report, assigned or result.bundled, self._parts.versions, self.wall(), assigned)
        install = self.record.find(ref)
        again = install is not None and install.racing_again
        if install is not None and install.racing_again and install.placement is not None:
            by_policy = install.race is not None and assigned != install.race.policy
            stays = rerace.why_stays(report, install.placement, by_policy=by_policy)
            logger.info("event=raced_again version=%s placement=%s stays=%s", ref, report.placement, stays)
            unmet = by_policy and report.placement is None
            if stays is not None and not unmet:  # what is kept says what serves, and not what would have
                told = {"placement": install.placement, "reason": f"{install.placement} stays: {stays}"}
                report = report.model_copy(update=told)
        try:
            self._parts.store.save_race(ref, report)
        except (StorageFull, OSError) as err:
            logger.error("event=race_report_lost version=%s error=%s", ref, err)
        self._parts.courier.keep(RaceItem(at=self.wall(), report=report))
        if again:
            self.record = rerace.reraced(self.record, ref, report, summary, assigned)
        else:
            self.record = outcomes.raced(self.record, report, ref, summary)

    def _look_at_deadlines(self) -> None:
        parts = self._parts
        now_s = parts.clock.monotonic()
        for ref, outcome in parts.actions.tick(now_s):
            self._conclude(ref, outcome)
        parts.desired.tick(self.record, now_s)
        parts.renewing.tick(now_s)
        parts.workers.tick(now_s)
        parts.courier.flush(now_s, self.online)
        parts.traffic.tick(now_s)

    def _tend_batch(self) -> None:
        """Say of each of the fleet's batch jobs whether it runs now; its process is started once the disk knows."""
        parts, racing = self._parts, None
        wanted = self.record.assignment.results if self.record.assignment is not None else ()
        if self.record.batch or wanted:
            races = (ref for ref, kind in parts.actions.kinds().items() if kind in (JobKind.RACE, JobKind.RERACE))
            racing = next(map(str, races), None)
        if self.record.batch:
            facts = parts.batch.facts(self.record.batch, self.wall(), parts.workers.links(), racing)
            self._keep_batch(batches.planned(self.record.batch, facts))
        runs = self.record.batch
        saved = batches.running(runs) is None or self._keeper.keep(self.record)
        self._note_batch(parts.batch.follow(runs, may_start=saved))
        if not wanted or self._keeper.keep(self.record):
            parts.results.follow(wanted, parts.clock.monotonic(), online=self.online, racing=racing)

    def _note_batch(self, news: tuple[str, batches.BatchOutcome] | None) -> None:
        parts = self._parts
        if news is not None:
            job, outcome = news
            runs = batches.concluded(self.record.batch, job, outcome, self.wall(), parts.rng, parts.limits)
            self._keep_batch(runs)

    def _keep_batch(self, runs: tuple[batches.BatchRun, ...]) -> None:
        if runs != self.record.batch:
            self.record = self.record.model_copy(update={"batch": runs})

    def _settle(self) -> None:
        """Plan and record until there is nothing more to record; persist; then carry the steps out."""
        for _ in range(_MAX_PLANS):
            facts = self._look()
            if facts is None:
                return
            steps = plan(self.record, facts, self._parts.limits)
            recorded = [step for step in steps if isinstance(step, Advance | Revise)]
            if not recorded and not self._carry_out([step for step in steps if not isinstance(step, Advance | Revise)]):
                return
            for step in recorded:
                self._apply(step)
        raise Misuse(f"the plan does not settle: {[str(step) for step in steps][:5]}; this is a bug of the agent")

    def _apply(self, step: Advance | Revise) -> None:
        if isinstance(step, Revise):
            self.record = self.record.changed(step.ref, **step.changes)
            return
        before = self.record.find(step.ref)
        self.record = self.record.advanced(step.ref, step.event, **step.changes)
        after = self.record.find(step.ref)
        self._stored.pop(step.ref, None)
        logger.info(
            "event=%s version=%s from=%s to=%s reason=%s",
            step.event,
            step.ref,
            before.state if before is not None else "unknown",
            after.state if after is not None else "unknown",
            step.changes.get("reason", ""),
        )

    def _carry_out(self, steps: list[Step]) -> bool:
        """Persist, then do the steps; return whether that changed the record, so that it must be planned again."""
        saved = self._keeper.keep(self.record)
        parts = self._parts
        before = self.record
        for step in steps:
            if isinstance(step, Begin) and not saved:
                continue
            if isinstance(step, Collect) and not saved:
                step = replace(step, also=self._keeper.needed())  # a cut now goes back to what the disk knows
            try:
                result = parts.actions.carry_out(step, self.record, self.wall(), parts.clock.monotonic())
            except (OSError, Exhausted) as err:
                # The steps after it may rest on it, as the end of a worker does on the link that leads elsewhere.
                self._trouble = f"{type(step).__name__} of {getattr(step, 'ref', 'all')}: {err}"
                break
            if isinstance(step, Cancel | Collect):
                self._stored.clear()
            if isinstance(result, WorkerDeath):
                self._mourn(result)
            elif result is not None:
                self._conclude(*result)
        return self.record is not before

    def _look(self) -> Facts | None:
        """Return the world as it is now, or None when the board has nothing left to look with: it is tried again."""
        try:
            return self.facts()
        except (OSError, Exhausted) as err:
            self._trouble = f"looking at the files: {err}"
            return None

    def _tell_trouble(self) -> None:
        """Log what cannot be done for now, once until it is another, and that it is over."""
        if self._trouble is None and self._told is not None:
            logger.info("event=board_out_of_trouble")
        elif self._trouble != self._told:
            logger.error("event=board_in_trouble %s action=tried_again_each_turn", self._trouble)
        self._told = self._trouble

    def _report(self) -> None:
        """Tell the fleet, when it can hear and there is something new that the disk knows, or why it does not."""
        parts = self._parts
        facts = self._look() if self.online else None
        if facts is None:
            return
        now_s, results = parts.clock.monotonic(), parts.results.reports()
        if not parts.reporter.due(self._keeper.told(self.record), facts, now_s, results):
            parts.reporter.beat(now_s)
            return
        numbered = self.record.model_copy(update={"report_sequence": self.record.report_sequence + 1})
        if not self._keeper.keep(numbered) and not self._keeper.may_number(numbered):
            return
        self.record = numbered
        try:
            parts.reporter.send(self._keeper.told(numbered), facts, now_s, results)
        except Rejected as err:
            logger.error("event=report_refused error=%s", err)

    def _patience(self) -> float:
        if self._parts.store.digests.waiting:
            return 0.0
        facts = self._look()
        if facts is None:
            return _LONGEST_TURN_S
        wake = wake_at(self.record, facts)
        fetching = any(kind in _TICKING for kind in facts.jobs.values())
        longest = min(_FETCHING_TURN_S if fetching else _LONGEST_TURN_S, (self._parts.notifier.watchdog_s or 60.0) / 3)
        return longest if wake is None else min(longest, max(0.01, wake - facts.now_s))
