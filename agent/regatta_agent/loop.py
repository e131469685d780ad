"""The loop: the only owner of the agent's state, in one thread.

    inbox -> take in events -> look at deadlines -> settle -> tend the batch work -> report what changed

Here is a turn, and in which order its parts come. What they do is in rooms of their own, to which the record is passed
and which return the next one: concluding.py (what has come of jobs and workers), settling.py (plan, persist, act),
batch_work.py, and surroundings.py, which looks at the world once a turn.

Invariants:
- Every turn is bounded: at most a full inbox is taken in, and files are read and deleted in pieces.
- The watchdog is fed and the alarm put off here and nowhere else.
"""

from __future__ import annotations

import logging
import queue
from dataclasses import dataclass

from regatta_agent.actions import Actions
from regatta_agent.clock import FlooredClock
from regatta_agent.concluding import Conclusions
from regatta_agent.core import boots, outcomes
from regatta_agent.core.facts import Facts, JobKind, Limits
from regatta_agent.core.installs import AgentRecord
from regatta_agent.core.planner import wake_at
from regatta_agent.core.windows import unreadable
from regatta_agent.desired import DesiredState
from regatta_agent.disk.keeping import Keeper
from regatta_agent.disk.store import Store
from regatta_agent.disk.traffic import TrafficBook
from regatta_agent.events import ChildEnded, ChildLine, Event
from regatta_agent.process.alarm import Alarm
from regatta_agent.process.trouble import Trouble
from regatta_agent.reporter import Reporter
from regatta_agent.settling import Settling
from regatta_agent.status import StatusFile
from regatta_agent.surroundings import Surroundings
from regatta_agent.telemetry.courier import Courier
from regatta_agent.work.batch_work import BatchWork
from regatta_agent.work.jobs import AssignmentVerified
from regatta_agent.work.renewing import Renewing
from regatta_agent.workers import WorkerPool
from regatta_protocol.bus import Bus, Connected, Disconnected, Message, Published
from regatta_protocol.errors import Misuse, Rejected
from regatta_provisioning.notify import Notifier

__all__ = ["Loop", "Parts"]

logger = logging.getLogger(__name__)

_LONGEST_TURN_S = 1.0  # between looks at deadlines
_TICKING = (JobKind.MANIFEST, JobKind.FILES, JobKind.CHECK)  # jobs that go on by themselves
_FETCHING_TURN_S = 0.1  # lost chunks are noticed after 0.5 s or more (core/transfer.py)
_MAX_EVENTS = 256  # taken in before planning


@dataclass(frozen=True, eq=False, repr=False)  # no value: what else it would be given is 5 KB of this process
class Parts:
    """What the loop is built of (bootstrap.py builds it)."""

    inbox: queue.Queue[Event]
    bus: Bus
    clock: FlooredClock
    limits: Limits
    keeper: Keeper
    store: Store
    workers: WorkerPool
    actions: Actions
    desired: DesiredState
    courier: Courier
    reporter: Reporter
    renewing: Renewing
    batch_work: BatchWork
    surroundings: Surroundings
    conclusions: Conclusions
    settling: Settling
    trouble: Trouble
    notifier: Notifier
    alarm: Alarm
    traffic: TrafficBook
    status: StatusFile


class Loop:
    """The agent at work."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.record = AgentRecord()
        self.online = False
        self._offline: str | None = None  # why, as the bus last said
        self._offline_since_s: float | None = parts.clock.monotonic()
        self.stopping: str | None = None  # why; a signal handler sets it, and the loop ends within a turn

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
        loaded = parts.keeper.load(int(self.wall() * 1000))
        self.record = outcomes.recovered(loaded, parts.limits, parts.surroundings.boot)
        self._settle()
        parts.status.say(self.online, None, None, self._offline_since_s)
        self._connect()
        parts.notifier.ready()
        logger.info("event=started generation=%d versions=%d", self.record.generation, len(list(self.record.all())))

    def turn(self, patience_s: float) -> None:
        """Take in what has come (waiting up to `patience_s` for the first), and act on it."""
        parts, events = self._parts, 0
        parts.trouble.new_turn()
        parts.store.digests.new_turn()
        while events < _MAX_EVENTS:
            try:
                event = parts.inbox.get(timeout=patience_s) if patience_s > 0 else parts.inbox.get_nowait()
            except queue.Empty:
                break
            self._take_in(event)
            events += 1
            patience_s = 0.0
            if isinstance(event, Connected):
                break  # what goes on must begin again first: chunks that were on their way may be next in the line
        parts.surroundings.expire()
        self._look_at_deadlines()
        self._settle()
        self._tend_batch()
        self._report()
        parts.trouble.tell()
        parts.status.say(self.online, parts.desired.refused, self._offline, self._offline_since_s)
        parts.notifier.alive(f"generation {self.record.generation}, {'online' if self.online else 'offline'}")
        parts.alarm.put_off()

    def stop(self) -> None:
        """End cleanly: presence down, workers drained, everything kept."""
        parts = self._parts
        logger.info("event=stopping reason=%s", self.stopping)
        parts.notifier.stopping()
        parts.actions.cancel_all()
        parts.desired.cancel()
        parts.renewing.cancel()
        parts.batch_work.cancel()
        parts.workers.stop_all(parts.clock.monotonic())
        while parts.workers.running():
            try:
                event = parts.inbox.get(timeout=_LONGEST_TURN_S)
            except queue.Empty:
                parts.workers.tick(parts.clock.monotonic())
                continue
            if isinstance(event, ChildLine | ChildEnded):
                self.record = parts.conclusions.heard(self.record, event)
        self.record = boots.stopped(self.record)
        parts.keeper.keep(self.record)
        parts.courier.flush(parts.clock.monotonic(), self.online)
        parts.bus.stop()
        parts.traffic.close()
        parts.status.clear()

    def wall(self) -> float:
        """Return seconds since 1970, never below what is known for sure to be past."""
        return self._parts.clock.wall(self.record.time_floor)

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
            self.record = parts.conclusions.heard(self.record, event)
        parts.renewing.handle(event, now_s)
        self.record = parts.batch_work.handled(self.record, event, now_s)
        verified = parts.desired.handle(event, self.record, now_s)
        if verified is not None:
            self._take_up(verified)
        for ref, outcome in parts.actions.handle(event, now_s):
            self.record = parts.conclusions.concluded(self.record, ref, outcome)

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
        self._parts.surroundings.forget_files()  # how much of a download is kept has changed

    def _take_up(self, verified: AssignmentVerified) -> None:
        before = self.record.generation
        self.record = outcomes.take_up(self.record, verified.signed, verified.assignment)
        if self.record.generation != before:
            logger.info("event=assigned generation=%d", self.record.generation)
            for reason in unreadable(verified.assignment):
                logger.warning("event=update_window_unreadable action=not_waited_for reason=%s", reason)

    def _look_at_deadlines(self) -> None:
        parts = self._parts
        now_s = parts.clock.monotonic()
        for ref, outcome in parts.actions.tick(now_s):
            self.record = parts.conclusions.concluded(self.record, ref, outcome)
        parts.desired.tick(self.record, now_s)
        parts.renewing.tick(now_s)
        parts.workers.tick(now_s)
        parts.courier.flush(now_s, self.online)
        parts.traffic.tick(now_s)

    def _settle(self) -> None:
        self.record = self._parts.settling.settle(self.record, online=self.online)

    def _look(self) -> Facts | None:
        return self._parts.surroundings.look(self.record, online=self.online)

    def _tend_batch(self) -> None:
        facts = self._look()
        if facts is not None:
            self.record = self._parts.batch_work.tended(self.record, facts)

    def _report(self) -> None:
        """Tell the fleet, when it can hear and there is something new that the disk knows, or why it does not."""
        parts = self._parts
        facts = self._look() if self.online else None
        if facts is None:
            return
        now_s, results = parts.clock.monotonic(), parts.batch_work.reports()
        if not parts.reporter.due(parts.keeper.told(self.record), facts, now_s, results):
            parts.reporter.beat(now_s)
            return
        numbered = self.record.model_copy(update={"report_sequence": self.record.report_sequence + 1})
        if not parts.keeper.keep(numbered) and not parts.keeper.may_number(numbered):
            return
        self.record = numbered
        try:
            parts.reporter.send(parts.keeper.told(numbered), facts, now_s, results)
        except Rejected as err:
            logger.error("event=report_refused error=%s", err)

    def _patience(self) -> float:
        """Return how long the next turn may wait for an event."""
        parts = self._parts
        if parts.store.digests.waiting:
            return 0.0
        facts = self._look()
        if facts is None:
            return _LONGEST_TURN_S
        wake = wake_at(self.record, facts)
        fetching = any(kind in _TICKING for kind in facts.jobs.values())
        longest = min(_FETCHING_TURN_S if fetching else _LONGEST_TURN_S, (parts.notifier.watchdog_s or 60.0) / 3)
        return longest if wake is None else min(longest, max(0.01, wake - facts.now_s))
