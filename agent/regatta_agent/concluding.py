"""What has come of jobs and workers, written into the record: the next record, and what must be kept beside it.

core/outcomes.py and its neighbors decide what an end means. Here they are given the clock and the space, and what they
do not know is kept: the race's report, telemetry, and strikes against a pair that ended its worker. The record is the
loop's: it is passed in, and the next one is returned.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from regatta_agent.actions import Actions
from regatta_agent.clock import FlooredClock
from regatta_agent.core import outcomes, rerace, worker_outcomes
from regatta_agent.core.facts import Limits
from regatta_agent.core.installs import AgentRecord, Degradation, Install
from regatta_agent.disk.quarantine_file import QuarantineFile
from regatta_agent.disk.store import Store
from regatta_agent.events import ChildEnded, ChildLine
from regatta_agent.serving.events import Degraded, Drifted, Recovered
from regatta_agent.surroundings import Surroundings
from regatta_agent.telemetry.courier import Courier
from regatta_agent.work.jobs import Authorized, Failed, FilesChecked, ManifestFetched, Outcome, Raced
from regatta_agent.workers import WorkerDeath, WorkerNews, WorkerPool
from regatta_protocol.errors import StorageFull
from regatta_protocol.ids import ModelRef
from regatta_protocol.messages import RaceItem, ServingWindow
from regatta_runtimes.worker.quarantine import MAX_STRIKES

__all__ = ["Conclusions"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, repr=False)  # no value: what else it would be given is 5 KB of this process
class Conclusions:
    """Draws them, with the means that it takes. Holds no state of its own; used by the loop's thread only."""

    surroundings: Surroundings
    store: Store
    workers: WorkerPool
    actions: Actions
    courier: Courier
    quarantine: QuarantineFile
    clock: FlooredClock
    rng: Random
    limits: Limits
    versions: Mapping[str, str]  # of runtimes, drivers and kernel

    def heard(self, record: AgentRecord, event: ChildLine | ChildEnded) -> AgentRecord:
        """Return the record after a child said something or ended; only serving workers matter here."""
        result = self.workers.handle(event, self.clock.monotonic())
        if isinstance(result, ServingWindow):
            self.courier.keep(result)
        elif isinstance(result, WorkerDeath):
            return self.mourned(record, result)
        elif isinstance(result, WorkerNews):
            return self._noted(record, result)
        return record

    def mourned(self, record: AgentRecord, death: WorkerDeath) -> AgentRecord:
        """Return the record after a worker ended unasked, or could not be started."""
        self.surroundings.forget(death.ref)
        if death.lack is not None:
            return worker_outcomes.starved(
                record, death.ref, death.lack, self._wall(record), self.rng, self.limits,
                self.surroundings.space_bytes(),
            )  # fmt: skip
        install = record.find(death.ref)
        first = install is not None and install.deaths <= 1  # not each time: it reads every file
        if death.unready and first and self.actions.check(death, self.clock.monotonic()):
            return record  # it goes on when the files have been read
        return self._buried(record, death)

    def concluded(self, record: AgentRecord, ref: ModelRef, outcome: Outcome) -> AgentRecord:
        """Return the record after a job of `ref` ended."""
        self.surroundings.forget(ref)
        if isinstance(outcome, Authorized):
            record = _with_root(record, outcome.root_version)
            return outcomes.authorized(record, ref, outcome.digest, outcome.size_bytes, outcome.role_versions)
        if isinstance(outcome, ManifestFetched):
            return outcomes.manifest_stored(record, ref)
        if isinstance(outcome, FilesChecked):
            return self._buried(record, outcome.death)
        if isinstance(outcome, Raced):
            return self._raced(record, ref, outcome)
        if isinstance(outcome, Failed):
            return self._failed(record, ref, outcome)
        return record

    def distrusted(self, before: Install, after: Install) -> None:
        """Let races leave out what was given up because it ended the board, and try again what has proved sound."""
        report, still = self.store.race(after.ref), [one.placement for one in after.given_up]
        for one in after.given_up:
            if one.placement not in [other.placement for other in before.given_up]:
                logger.error("event=given_up version=%s placement=%s reason=%s", after.ref, one.placement, one.reason)
                self.quarantine.strike(report, one.placement, one.reason, MAX_STRIKES)
        for one in before.given_up:
            if one.placement not in still:
                logger.info("event=trusted_again version=%s placement=%s", after.ref, one.placement)
                self.quarantine.absolve(report, one.placement)

    def _noted(self, record: AgentRecord, news: WorkerNews) -> AgentRecord:
        """Return the record with which candidate serves, and why."""
        said = news.said
        if isinstance(said, Recovered):
            logger.info("event=recovered version=%s placement=%s", news.ref, said.placement)
            self.quarantine.absolve(self.store.race(news.ref), said.placement)
            return worker_outcomes.winner_back(record, news.ref, said.placement, said.retried)
        if isinstance(said, Drifted):
            logger.warning(
                "event=drifted version=%s found_us=%.0f raced_us=%.0f", news.ref, said.found_us, said.expected_us
            )
            return rerace.drifted(record, news.ref, said.placement, said.expected_us, said.found_us)
        return self._degraded(record, news.ref, said)

    def _degraded(self, record: AgentRecord, ref: ModelRef, said: Degraded) -> AgentRecord:
        logger.warning("event=degraded version=%s placement=%s reason=%s", ref, said.placement, said.reason)
        if said.crashed:
            self.quarantine.strike(self.store.race(ref), said.winner, said.reason)
        told = Degradation(placement=said.placement, reason=said.reason, since=said.since)
        return worker_outcomes.degraded(record, ref, told, said.retried)

    def _buried(self, record: AgentRecord, death: WorkerDeath) -> AgentRecord:
        """Return the record with what the end of a worker means."""
        install = record.find(death.ref)
        successor = install.successor if install is not None else None
        if install is not None and successor is not None and death.candidate != install.placement:
            return rerace.successor_died(record, death.ref, death.why)
        return worker_outcomes.worker_died(
            record, death.ref, death.why, death.lived_s, self._wall(record), self.rng, self.limits
        )

    def _raced(self, record: AgentRecord, ref: ModelRef, result: Raced) -> AgentRecord:
        report, assigned = result.report, result.assigned
        at = self._wall(record)
        summary = outcomes.summary_of(report, assigned or result.bundled, self.versions, at, assigned)
        install = record.find(ref)
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
            self.store.save_race(ref, report)
        except (StorageFull, OSError) as err:
            logger.error("event=race_report_lost version=%s error=%s", ref, err)
        self.courier.keep(RaceItem(at=at, report=report))
        if again:
            return rerace.reraced(record, ref, report, summary, assigned)
        return outcomes.raced(record, report, ref, summary)

    def _failed(self, record: AgentRecord, ref: ModelRef, outcome: Failed) -> AgentRecord:
        record = _with_root(record, outcome.root_version)
        logger.warning("event=job_failed version=%s error=%s", ref, outcome.error)
        install = record.find(ref)
        if install is not None and install.racing_again:
            return rerace.rerace_failed(record, ref, outcome.error)
        return outcomes.failed(
            record, ref, outcome.error, self._wall(record), self.rng, self.limits, self.surroundings.space_bytes()
        )

    def _wall(self, record: AgentRecord) -> float:
        return self.clock.wall(record.time_floor)


def _with_root(record: AgentRecord, root_version: int | None) -> AgentRecord:
    """Return the record with the newest root metadata that was verified."""
    if root_version is None or root_version <= record.root_version:
        return record
    return record.model_copy(update={"root_version": root_version})
