"""The planner's steps carried out: jobs begun and cancelled, workers started and stopped, links set, files deleted.

Nothing is decided here. What a step cannot do comes back as an outcome or a death, like everything else.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

from regatta_agent.core.facts import (
    Begin,
    Cancel,
    Collect,
    JobKind,
    Point,
    StartWorker,
    Step,
    StopWorker,
    Unpoint,
)
from regatta_agent.core.installs import AgentRecord
from regatta_agent.disk.store import Store
from regatta_agent.errors import WrongBlob
from regatta_agent.events import Event
from regatta_agent.work.authorizing import Authorize, TrustFloor
from regatta_agent.work.checking import CheckFiles
from regatta_agent.work.children import Launcher
from regatta_agent.work.fetcher import FetchFiles, FetchManifest
from regatta_agent.work.jobs import Failed, Job, Outcome
from regatta_agent.work.overlays import fpga_reserved
from regatta_agent.work.racing import FleetResults, Race, RaceSettings
from regatta_agent.workers import WorkerDeath, WorkerPool
from regatta_protocol.bus import Bus
from regatta_protocol.durable import shortage_of
from regatta_protocol.errors import Exhausted, Misuse, RegattaError, StorageFull
from regatta_protocol.ids import Digest, ModelRef
from regatta_protocol.manifest import FileRef
from regatta_provisioning.identity import Identity

__all__ = ["Actions"]

logger = logging.getLogger(__name__)

_TRANSFERS = 64  # remembered; one is under way at a time
_COLLECT_AGAIN_S = 600.0  # what is left over is in nobody's way
_NEEDS_BROKER = (JobKind.AUTHORIZE, JobKind.MANIFEST, JobKind.FILES)


class Actions:
    """What goes on for the agent, and how it is begun and ended."""

    def __init__(
        self, bus: Bus, launcher: Launcher, identity: Identity, store: Store, workers: WorkerPool, race: RaceSettings,
        *, trust_dir: Path, run_dir: Path, boot: str,
    ) -> None:  # fmt: skip
        self._bus = bus
        self._launcher = launcher
        self._identity = identity
        self._store = store
        self._workers = workers
        self._race = race
        self._trust_dir = trust_dir
        self._run_dir = run_dir
        self._boot = boot
        self._jobs: dict[ModelRef, tuple[JobKind, Job]] = {}
        self._numbers = itertools.count(1)
        self._transfers: dict[Digest, int] = {}  # of the files asked for last
        self.collected: frozenset[ModelRef] | None = None
        self._collect_again_s: float | None = None  # after one that came to nothing

    def kinds(self) -> Mapping[ModelRef, JobKind]:
        """Return what is under way."""
        return {ref: kind for ref, (kind, _) in self._jobs.items()}

    def carry_out(
        self, step: Step, record: AgentRecord, wall_s: float, now_s: float
    ) -> tuple[ModelRef, Outcome] | WorkerDeath | None:
        """Do one step; return what came of it when that is known at once."""
        if isinstance(step, Begin):
            return self._begin(step, record, wall_s, now_s)
        if isinstance(step, Cancel):
            self._jobs.pop(step.ref)[1].cancel()
        elif isinstance(step, StartWorker):
            return self._start_worker(step, now_s)
        elif isinstance(step, StopWorker):
            self._workers.stop(step.ref, now_s, step.socket)
        elif isinstance(step, Point):
            self._workers.point(step.ref, step.socket, shadow=step.shadow)
        elif isinstance(step, Unpoint):
            self._workers.unpoint(step.name, shadow=step.shadow)
        elif isinstance(step, Collect):
            self._collect(step, record, now_s)
        return None

    def check(self, death: WorkerDeath, now_s: float) -> bool:
        """Let the files be read that a worker could not start from; return False while something else goes on."""
        if death.ref in self._jobs:
            return False
        job = CheckFiles(death, self._store)
        self._jobs[death.ref] = (JobKind.CHECK, job)
        job.begin(now_s)
        return True

    def handle(self, event: Event, now_s: float) -> Iterator[tuple[ModelRef, Outcome]]:
        """Show the jobs an event; yield what ended with it."""
        for ref, (_, job) in list(self._jobs.items()):
            yield from self._ended(ref, job.handle(event, now_s))

    def tick(self, now_s: float) -> Iterator[tuple[ModelRef, Outcome]]:
        """Let the jobs do what is due; yield what ended."""
        if self._collect_again_s is not None and now_s >= self._collect_again_s:
            self._collect_again_s, self.collected = None, None
        for ref, (_, job) in list(self._jobs.items()):
            yield from self._ended(ref, job.tick(now_s))

    def went_offline(self) -> None:
        """Cancel what needs the broker; it begins again, where it was, when the broker is back."""
        for ref, (kind, job) in list(self._jobs.items()):
            if kind in _NEEDS_BROKER:
                job.cancel()
                del self._jobs[ref]

    def cancel_all(self) -> None:
        """Leave no job running."""
        for _, job in self._jobs.values():
            job.cancel()
        self._jobs.clear()

    def _begin(self, step: Begin, record: AgentRecord, wall_s: float, now_s: float) -> tuple[ModelRef, Outcome] | None:
        try:
            job = self._make(step, record, wall_s)
            self._jobs[step.ref] = (step.kind, job)
            logger.info("event=job_begun version=%s job=%s", step.ref, step.kind)
            outcome = job.begin(now_s)
        except Exhausted as err:
            self._jobs.pop(step.ref, None)
            return step.ref, Failed(err)
        return next(self._ended(step.ref, outcome), None)

    def _make(self, step: Begin, record: AgentRecord, wall_s: float) -> Job:
        name = f"{step.kind}-{self._boot[:8]}-{next(self._numbers)}"
        if step.kind is JobKind.AUTHORIZE:
            floor = TrustFloor(record.role_versions, record.root_version, wall_s)
            return Authorize(name, step.ref, self._bus, self._launcher, self._identity, self._trust_dir, floor)
        if step.kind in (JobKind.RACE, JobKind.RERACE):
            racing = record.find(step.ref)
            results = FleetResults(self._bus, self._identity.device, name)
            return Race(
                name, step.ref, self._store, self._launcher, self._run_dir, self._race, results, wall_s,
                assigned=racing.policy if racing is not None else None,
                again=racing is not None and racing.outdated and step.kind is JobKind.RERACE,
                fpga_reserved=fpga_reserved(record, self._store, step.ref),
            )  # fmt: skip
        if step.kind is JobKind.FILES:
            return FetchFiles(step.ref, self._bus, self._identity.device, self._store, self._transfer_of)
        install = record.find(step.ref)
        if install is None or install.manifest_digest is None or install.manifest_bytes is None:
            raise Misuse(f"{step.ref} is to be fetched without a signed digest of its manifest")
        file = FileRef(digest=install.manifest_digest, size_bytes=install.manifest_bytes)
        return FetchManifest(step.ref, file, self._bus, self._identity.device, self._store, self._transfer_of)

    def _transfer_of(self, digest: Digest) -> int:
        """Return the number under which a file's chunks come.

        After a cut connection it is the same, for what the fleet had sent before is still on its way and need not be
        sent twice. Another start of the agent has others, because its chunks may be of another size.
        """
        number = self._transfers.pop(digest, None)
        if number is None:
            number = (int(self._boot[:4], 16) << 16 | next(self._numbers) & 0xFFFF) & 0xFFFFFFFF
        self._transfers[digest] = number
        while len(self._transfers) > _TRANSFERS:
            del self._transfers[next(iter(self._transfers))]
        return number

    def _ended(self, ref: ModelRef, outcome: Outcome | None) -> Iterator[tuple[ModelRef, Outcome]]:
        if outcome is None:
            return
        if isinstance(outcome, Failed) and isinstance(outcome.error, WrongBlob):
            self._transfers.pop(outcome.error.digest, None)  # what is still on its way is of the same wrong file
        kind, _ = self._jobs.pop(ref)
        reason = outcome.error if isinstance(outcome, Failed) else "done"
        logger.info("event=job_ended version=%s job=%s result=%s", ref, kind, reason)
        yield ref, outcome

    def _start_worker(self, step: StartWorker, now_s: float) -> WorkerDeath | None:
        try:
            self._workers.start(step, now_s)
        except (RegattaError, OSError) as err:
            shortage = shortage_of(err, "its worker") if isinstance(err, OSError) else None
            error = shortage or err
            logger.error("event=worker_not_started version=%s error=%s", step.ref, error)
            lack = error if isinstance(error, StorageFull | Exhausted) else None
            return WorkerDeath(step.ref, step.candidate, str(error), 0.0, lack=lack)
        return None

    def _collect(self, step: Collect, record: AgentRecord, now_s: float) -> None:
        keep = step.keep | step.also
        installs = [record.find(ref) for ref in keep]
        digests = [
            one.manifest_digest
            for one in installs
            if one is not None and one.manifest_digest is not None and self._store.manifest(one.ref) is None
        ]
        self.collected = step.keep
        try:
            freed_bytes, whole = self._store.collect(keep, digests)
        except (OSError, Exhausted) as err:
            self._collect_again_s = now_s + _COLLECT_AGAIN_S
            logger.error("event=not_collected error=%s again_in_s=%g", err, _COLLECT_AGAIN_S)
            return
        if not whole:
            self.collected = None  # the next plan asks for the rest
        elif keep != step.keep:
            self._collect_again_s = now_s + _COLLECT_AGAIN_S
        if freed_bytes:
            logger.info("event=collected freed_bytes=%d kept=%d", freed_bytes, len(step.keep))
