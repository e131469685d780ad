"""What the fleet wants of the device besides serving: batch jobs run, and the outputs of ended ones sent.

core/batches.py decides which job runs; batch_runner.py and results_sender.py have the child processes. Here the two
are given what the record says, in the order that a kill at any moment allows: a process is started only once the disk
knows of it. The record is the loop's: it is passed in, and the next one is returned.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from regatta_agent.clock import FlooredClock
from regatta_agent.core import batches
from regatta_agent.core.facts import Facts, JobKind, Limits
from regatta_agent.core.installs import AgentRecord
from regatta_agent.disk.keeping import Keeper
from regatta_agent.events import Event
from regatta_agent.work.batch_runner import BatchRunner
from regatta_agent.work.results_sender import ResultsSender
from regatta_protocol.batch import ResultsReport

__all__ = ["BatchWork"]

_RACES = (JobKind.RACE, JobKind.RERACE)


@dataclass(frozen=True, eq=False, repr=False)  # no value: what else it would be given is 5 KB of this process
class BatchWork:
    """Runs jobs and sends results, beside no race. Used by the loop's thread only."""

    runner: BatchRunner
    sender: ResultsSender
    keeper: Keeper
    clock: FlooredClock
    rng: Random
    limits: Limits

    def handled(self, record: AgentRecord, event: Event, now_s: float) -> AgentRecord:
        """Return the record after an event, which may be of a job's child; `now_s` is monotonic."""
        record = self._noted(record, self.runner.handle(event, now_s))
        self.sender.handle(event, now_s)
        return record

    def tended(self, record: AgentRecord, facts: Facts) -> AgentRecord:
        """Return the record after each job was told whether it runs now, and each output whether it is sent."""
        wanted = record.assignment.results if record.assignment is not None else ()
        racing = next((str(ref) for ref, kind in facts.jobs.items() if kind in _RACES), None)
        if record.batch:
            world = self.runner.facts(record.batch, self.clock.wall(record.time_floor), facts.links, racing)
            record = _with_runs(record, batches.planned(record.batch, world))
        saved = batches.running(record.batch) is None or self.keeper.keep(record)
        record = self._noted(record, self.runner.follow(record.batch, may_start=saved))
        if not wanted or self.keeper.keep(record):
            self.sender.follow(wanted, self.clock.monotonic(), online=facts.online, racing=racing)
        return record

    def reports(self) -> tuple[ResultsReport, ...]:
        """Return how the outputs stand that are to be sent."""
        return self.sender.reports()

    def cancel(self) -> None:
        """Leave nothing running."""
        self.runner.cancel()
        self.sender.cancel()

    def _noted(self, record: AgentRecord, news: tuple[str, batches.BatchOutcome] | None) -> AgentRecord:
        if news is None:
            return record
        now_s = self.clock.wall(record.time_floor)
        return _with_runs(record, batches.concluded(record.batch, *news, now_s, self.rng, self.limits))


def _with_runs(record: AgentRecord, runs: tuple[batches.BatchRun, ...]) -> AgentRecord:
    return record if runs == record.batch else record.model_copy(update={"batch": runs})
