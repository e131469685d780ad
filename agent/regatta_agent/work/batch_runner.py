"""Runs the fleet's batch jobs, one child process at a time, as the record says (core/batches.py).

The child (batch/fleet_job.py) does the work at low priority and keeps its journal; it may be killed at any moment and
goes on from there. Here it is only started, ended and listened to.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from regatta_agent.core.batches import (
    BatchFacts,
    BatchOutcome,
    BatchRun,
    Broken,
    Finished,
    Progressed,
    running,
)
from regatta_agent.events import ChildEnded, ChildLine, Event
from regatta_agent.work.children import Child, Launcher
from regatta_protocol.batch import BatchJob, BatchSummary
from regatta_protocol.codec import decode, encode
from regatta_protocol.errors import Misuse, Rejected, StorageFull, Untrusted
from regatta_protocol.wire import Wire

__all__ = ["BatchRunner", "BatchSaid", "BatchSettings", "BatchSpec"]

logger = logging.getLogger(__name__)

_TELL_S = 60.0  # a count on its way into the record is a write to the disk and a report
_FINAL = (Rejected.exit_code, Untrusted.exit_code, Misuse.exit_code)


class BatchSpec(Wire):
    """What the child is given on its standard input."""

    job: BatchJob
    socket: Path
    folder: Path
    inputs: tuple[Path, ...]
    reserve_bytes: int  # left free on the disk of the results
    parent: int  # the agent's process id: the child ends with it


class BatchSaid(Wire):
    """A line of the child: how far it is, and at the end the summary."""

    records: int = 0
    total: int | None = None
    summary: BatchSummary | None = None


@dataclass(frozen=True)
class BatchSettings:
    """What the device's operator allows, and where things are."""

    folder: Path | None
    inputs: tuple[Path, ...]
    run_dir: Path
    reserve_bytes: int


class BatchRunner:
    """Used by the loop's thread only."""

    def __init__(self, launcher: Launcher, settings: BatchSettings, boot: str) -> None:
        self._launcher = launcher
        self._settings = settings
        self._boot = boot
        self._count = 0
        self._child: Child | None = None
        self._name = ""
        self._job = ""
        self._doomed = False  # it was killed, and its end has not been heard of yet
        self._told_s: float | None = None
        self._summary: BatchSummary | None = None

    def facts(self, runs: tuple[BatchRun, ...], now_s: float, serving: Iterable[str], racing: str | None) -> BatchFacts:
        """Return the world as these jobs depend on it; `now_s` is seconds since 1970."""
        settings = self._settings
        waiting = any(run.full_at_bytes is not None for run in runs)  # else nothing is asked of what may be a network's
        return BatchFacts(
            now_s,
            frozenset(serving),
            racing,
            None if settings.folder is None else PurePosixPath(settings.folder),
            tuple(PurePosixPath(one) for one in settings.inputs),
            free_bytes=self._free_bytes() if waiting else None,
            reserve_bytes=settings.reserve_bytes,
        )

    def follow(self, runs: tuple[BatchRun, ...], *, may_start: bool) -> tuple[str, BatchOutcome] | None:
        """Let the child be that of the run that runs, or let there be none; return what came of it at once."""
        run = running(runs)
        if self._child is not None:
            if not self._doomed and (run is None or run.job.id != self._job):
                logger.info("event=batch_stopped job=%s", self._job)
                self._child.kill()
                self._doomed = True
            return None
        if run is None or not may_start:
            return None
        return self._start(run)

    def handle(self, event: Event, now_s: float) -> tuple[str, BatchOutcome] | None:
        """Return what an event of the child comes to, with the job's id; `now_s` is monotonic."""
        if self._child is None or not isinstance(event, ChildLine | ChildEnded) or event.child != self._name:
            return None
        outcome = self._hear(event, now_s) if isinstance(event, ChildLine) else self._ended(event)
        return None if outcome is None else (self._job, outcome)

    def cancel(self) -> None:
        """Leave nothing running."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def _start(self, run: BatchRun) -> tuple[str, BatchOutcome] | None:
        settings, job = self._settings, run.job
        if settings.folder is None:
            raise Misuse(f"the batch job {job.id} runs without leave: this is a bug of the agent")
        spec = BatchSpec(
            job=job,
            socket=settings.run_dir / f"{job.model}.sock",
            folder=settings.folder,
            inputs=settings.inputs,
            reserve_bytes=settings.reserve_bytes,
            parent=os.getpid(),
        )
        self._count += 1
        self._name, self._job = f"batch-{self._boot[:8]}-{self._count}", job.id
        self._doomed, self._told_s, self._summary = False, None, None
        argv = [sys.executable, "-m", "regatta_agent.batch.fleet_job"]
        try:
            self._child = self._launcher.launch(self._name, argv, encode(spec))
        except OSError as err:
            return job.id, Broken(f"its process cannot be started: {err}", final=False)
        logger.info("event=batch_started job=%s attempt=%d pid=%d", job.id, run.attempt, self._child.pid)
        return None

    def _hear(self, event: ChildLine, now_s: float) -> BatchOutcome | None:
        try:
            said = decode(BatchSaid, event.line)
        except Rejected as err:
            logger.warning("event=batch_said_nonsense job=%s error=%s", self._job, err)
            return None
        if self._doomed:
            return None
        if said.summary is not None:
            self._summary = said.summary
            return None
        if self._told_s is not None and now_s - self._told_s < _TELL_S:
            return None
        self._told_s = now_s
        return Progressed(said.records, said.total)

    def _ended(self, event: ChildEnded) -> BatchOutcome | None:
        self._child = None
        if self._doomed:
            return None
        if event.status == 0 and self._summary is not None:
            logger.info("event=batch_done job=%s records=%d", self._job, self._summary.records)
            return Finished(self._summary)
        logger.warning("event=batch_broken job=%s how=%s", self._job, event.describe())
        last = event.errors.strip().splitlines()[-1:]
        final, full = event.status in _FINAL, event.status == StorageFull.exit_code
        reason = last[0][:300] if (final or full) and last else event.describe()
        return Broken(reason, final=final, full=full, free_bytes=self._free_bytes() if full else None)

    def _free_bytes(self) -> int | None:
        if self._settings.folder is None:
            return None
        try:
            facts = os.statvfs(self._settings.folder)
        except OSError:
            return None
        return facts.f_bavail * facts.f_frsize
