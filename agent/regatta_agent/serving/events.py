"""What a serving worker says on its standard output: one JSON object a line. Imports no numpy.

A worker says `ready` once, then `window` every `window_s` (also when nobody asked: a worker that falls silent hangs)
and once more when it has drained; `degraded` whenever another candidate than the winner serves or a retry of the
winner came to nothing, `recovered` when the winner serves again; `drifted` when the placement has long been slower
than in its race; `shadowed` with each window while the next version computes live requests too; `failed` and ends.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Literal

from regatta_protocol.bounds import Bounds
from regatta_protocol.errors import RegattaError, Rejected, Retryable, TooLarge
from regatta_protocol.plain import parse_json, read
from regatta_protocol.values import ServingWindow

__all__ = [
    "MAX_EVENT_BYTES",
    "Degraded",
    "Drifted",
    "Failed",
    "Family",
    "Ready",
    "Recovered",
    "SelfTest",
    "Shadowed",
    "WindowClosed",
    "WorkerEvent",
    "family_of",
    "parse_event",
]

MAX_EVENT_BYTES = 262_144  # a window whose five sketches use every bucket is about 125 KB

Family = Literal["retryable", "rejected", "misuse"]

_WINDOW_FIELDS = [one.name for one in fields(ServingWindow)]


@dataclass(frozen=True, kw_only=True)
class SelfTest:
    """How the placed candidate did on the golden samples of its bundle."""

    samples: Annotated[int, Bounds(ge=0)]  # 0: there were none for this variant
    snr_db: float | None = None  # of all outputs against the reference kernels; None when equal or untested
    passed: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class Ready:
    """The worker answers on its socket."""

    event: Literal["ready"] = "ready"
    load_us: Annotated[float, Bounds(ge=0)]  # from the process's first line to the end of the first inference
    self_test: SelfTest
    tcp: str | None = None  # the address bound, when one was asked for
    grpc: str | None = None  # and that of gRPC, when it is the worker's own


@dataclass(frozen=True, kw_only=True)
class WindowClosed(ServingWindow):
    """A window has ended."""

    event: Literal["window"] = "window"

    def window(self) -> ServingWindow:
        """Return the telemetry item without the event's name."""
        return ServingWindow(**{name: getattr(self, name) for name in _WINDOW_FIELDS})


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The worker cannot serve and ends."""

    event: Literal["failed"] = "failed"
    reason: str
    family: Family


@dataclass(frozen=True, kw_only=True)
class Degraded:
    """Another candidate serves in place of the winner."""

    event: Literal["degraded"] = "degraded"
    winner: str
    placement: str  # what serves
    reason: str
    since: float  # seconds since 1970
    retried: tuple[float, ...] = ()  # when the winner was retried within the last day
    crashed: bool = False  # this news is of a crash or a hang of the winner's library, and not said for another reason


@dataclass(frozen=True, kw_only=True)
class Recovered:
    """The winner serves again."""

    event: Literal["recovered"] = "recovered"
    placement: str
    retried: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Drifted:
    """On a quiet machine the placement has been slower than in its race, time after time: the race is out of date."""

    event: Literal["drifted"] = "drifted"
    placement: str
    expected_us: float
    found_us: float


@dataclass(frozen=True, kw_only=True)
class Shadowed:
    """How the next version's answers have compared with this one's so far, on live requests."""

    event: Literal["shadowed"] = "shadowed"
    socket: str  # of the next version's worker
    requests: Annotated[int, Bounds(ge=0)]
    failed: Annotated[int, Bounds(ge=0)]  # of them, by the next version
    classified: Annotated[int, Bounds(ge=0)]  # of them, both answers being classes
    agreed: Annotated[int, Bounds(ge=0)]  # of those
    snr_db: float | None = None  # of the others


WorkerEvent = Ready | WindowClosed | Degraded | Recovered | Drifted | Shadowed | Failed


@dataclass(frozen=True)
class _Line:
    """Any event."""

    said: WorkerEvent


def parse_event(line: bytes) -> WorkerEvent:
    """Return the event on one line of a worker's standard output.

    Raises:
        Rejected: when it is none.
    """
    if len(line) > MAX_EVENT_BYTES:
        raise TooLarge(f"an event of {len(line)} bytes is over the limit of {MAX_EVENT_BYTES}")
    return read(_Line, {"said": parse_json(line)}, "this is no event of a worker").said


def family_of(error: RegattaError) -> Family:
    """Return which of the error families `error` belongs to."""
    if isinstance(error, Retryable):
        return "retryable"
    if isinstance(error, Rejected):
        return "rejected"
    return "misuse"
