"""What the planner is told about the world, and the steps with which it answers.

Facts are looked up by the loop at each turn; steps are carried out by actions.py. Neither holds anything that acts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from types import MappingProxyType
from typing import Any

from regatta_agent.core.states import Event
from regatta_protocol.backoff import backoff_s
from regatta_protocol.enums import StrEnum
from regatta_protocol.ids import Digest, ModelName, ModelRef
from regatta_protocol.update_window import UpdateWindow

__all__ = [
    "SPACE_CAME_BYTES",
    "Advance",
    "Begin",
    "Cancel",
    "Collect",
    "Facts",
    "JobKind",
    "Limits",
    "Point",
    "Revise",
    "ShadowFacts",
    "StartWorker",
    "Step",
    "StopWorker",
    "StoredVersion",
    "Unpoint",
    "WorkerFacts",
]


SPACE_CAME_BYTES = 1_000_000  # more than when a disk was found full: worth a try; less comes and goes with logs


class JobKind(StrEnum):
    """What may be going on for a version, besides its worker."""

    AUTHORIZE = "authorize"  # ask for the signed metadata and verify it
    MANIFEST = "manifest"  # fetch the manifest
    FILES = "files"  # fetch what is missing
    RACE = "race"
    RERACE = "rerace"  # beside the worker that serves
    CHECK = "check"  # of the files that a worker could not start from


@dataclass(frozen=True)
class Limits:
    """Bounds of patience and space, and when there may be updates. Times in seconds."""

    max_attempts: int = 8
    backoff_base_s: float = 2.0
    backoff_cap_s: float = 300.0
    space_wait_s: float = 3600.0  # a full disk is tried again at most once an hour, unless space appears
    trial_deaths: int = 2  # a worker that dies this often before its trial is over fails it
    failover_deaths: int = 3  # then the next best candidate serves
    lost_starts: int = 3  # runs of the kernel that end while a placement starts; then it is given up
    proof_s: float = 60.0  # what has served for so long after its start does not end the board by starting
    try_again_after_s: tuple[float, ...] = (3600.0, 3 * 3600.0, 6 * 3600.0)  # the agent's start, what was given up
    rerace_interval_s: float = 6 * 3600.0  # between races beside a serving worker, whatever asks for them
    disk_reserve_bytes: int = 16 * 1024 * 1024  # left free for logs, the outbox and the record
    keep_previous: int = 1  # retired versions of a wanted model that stay on disk
    pinned: frozenset[ModelRef] = frozenset()  # versions that stay on disk once they are there
    disk_budget_bytes: int = 0  # retired versions beyond those stay while all that is kept takes no more
    update_window: tuple[UpdateWindow, ...] = ()  # the device's own; (): the fleet's, where it has set one
    metered: bool = False  # files wait for the window, too
    unset_clock_wait_s: float = 3600.0  # NTP sets a clock within minutes; later a window is not waited for

    def retry_wait_s(self, attempt: int, rng: Random) -> float:
        """Return the wait before try number `attempt` (from 0) of what failed."""
        return backoff_s(attempt, self.backoff_base_s, self.backoff_cap_s, rng)

    def full_disk_wait_s(self, rng: Random) -> float:
        """Return the wait after a disk was found full, so long that there is at most one try an hour."""
        return rng.uniform(self.space_wait_s, 1.1 * self.space_wait_s)


@dataclass(frozen=True)
class ShadowFacts:
    """How the next version's answers have compared with this worker's, on live requests; see serving/events.py."""

    socket: str
    requests: int
    failed: int
    classified: int
    agreed: int
    snr_db: float | None


@dataclass(frozen=True)
class WorkerFacts:
    """A worker process that was started and has not ended."""

    candidate: str
    ready: bool
    ready_for_s: float  # since it was ready, on a monotonic clock
    socket: str
    stopping: bool = False
    requests: int = 0  # served since it was ready
    errors: int = 0
    shadow: ShadowFacts | None = None  # None: nothing was compared


@dataclass(frozen=True)
class StoredVersion:
    """What lies on disk of a version whose manifest is there."""

    manifest_digest: Digest
    missing: int  # files
    missing_bytes: int  # still to be fetched; what is kept of unfinished files is taken off
    size_bytes: int = 0  # of all its files; one that several versions share counts for each


@dataclass(frozen=True)
class Facts:
    """The world at one moment."""

    now_s: float  # seconds since 1970, never below the record's floor
    online: bool
    free_bytes: int  # in the state folder
    run_free_bytes: int = 0  # in the run folder
    clock_unset: bool = False  # the board's own clock says a time that is past for sure
    running_s: float = 0.0  # since the agent began, on a monotonic clock
    boot: str | None = None  # which run of the kernel this is; None: the board does not tell, and no start is counted
    stored: Mapping[ModelRef, StoredVersion] = field(default_factory=lambda: MappingProxyType({}))
    jobs: Mapping[ModelRef, JobKind] = field(default_factory=lambda: MappingProxyType({}))
    workers: Mapping[ModelRef, WorkerFacts] = field(default_factory=lambda: MappingProxyType({}))
    successors: Mapping[ModelRef, WorkerFacts] = field(default_factory=lambda: MappingProxyType({}))  # second ones
    versions: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))  # runtimes, drivers, kernel
    links: Mapping[ModelName, str] = field(default_factory=lambda: MappingProxyType({}))  # the socket that serves
    shadows: Mapping[ModelName, str] = field(default_factory=lambda: MappingProxyType({}))  # the next version's socket
    collected: frozenset[ModelRef] | None = None  # what the last collection kept


@dataclass(frozen=True)
class Advance:
    """Record that `event` happened to `ref`."""

    ref: ModelRef
    event: Event
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Revise:
    """Record changed fields of `ref`; its state stays."""

    ref: ModelRef
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class Begin:
    ref: ModelRef
    kind: JobKind


@dataclass(frozen=True)
class Cancel:
    ref: ModelRef


@dataclass(frozen=True)
class StartWorker:
    """Start a worker for a version.

    `winner` is what shall serve when it can; with `resting` it is not opened now, and `candidate` serves meanwhile.
    """

    ref: ModelRef
    candidate: str
    winner: str | None = None  # None: the candidate
    standbys: tuple[str, ...] = ()  # who takes over, best first
    guarded: bool = False
    resting: str | None = None
    retried: tuple[float, ...] = ()


@dataclass(frozen=True)
class StopWorker:
    """`socket`: only the worker that listens there; None: all of the version."""

    ref: ModelRef
    socket: str | None = None


@dataclass(frozen=True)
class Point:
    """Let the model's socket lead to this version's worker, in one rename; or its shadow: a sample of requests."""

    ref: ModelRef
    socket: str
    shadow: bool = False


@dataclass(frozen=True)
class Unpoint:
    """Take the model's socket away, or its shadow."""

    name: ModelName
    shadow: bool = False


@dataclass(frozen=True)
class Collect:
    """Delete every version and file that neither `keep` needs nor `also`, which the record on disk still names."""

    keep: frozenset[ModelRef]
    also: frozenset[ModelRef] = frozenset()


Step = Advance | Revise | Begin | Cancel | StartWorker | StopWorker | Point | Unpoint | Collect
