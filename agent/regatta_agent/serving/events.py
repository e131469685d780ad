"""What a serving worker says on its standard output: one JSON object a line. Imports no numpy.

A worker says `ready` once, then `window` every `window_s` (also when nobody asked: a worker that falls silent hangs)
and once more when it has drained; `degraded` whenever another candidate than the winner serves or a retry of the
winner came to nothing, `recovered` when the winner serves again; `drifted` when the placement has long been slower
than in its race; `shadowed` with each window while the next version computes live requests too; `failed` and ends.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, RootModel

from regatta_protocol.codec import decode
from regatta_protocol.errors import RegattaError, Rejected, Retryable
from regatta_protocol.measurement import ServingWindow
from regatta_protocol.wire import Wire

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

MAX_EVENT_BYTES = 65_536  # a window with every bucket of its sketch is about 25 KB

Family = Literal["retryable", "rejected", "misuse"]


class SelfTest(Wire):
    """How the placed candidate did on the golden samples of its bundle."""

    samples: int = Field(ge=0)  # 0: there were none for this variant
    snr_db: float | None = None  # of all outputs against the reference kernels; None when equal or untested
    passed: bool
    reason: str


class Ready(Wire):
    """The worker answers on its socket."""

    event: Literal["ready"] = "ready"
    load_us: float = Field(ge=0)  # from the process's first line to the end of the first inference
    self_test: SelfTest
    tcp: str | None = None  # the address bound, when one was asked for
    grpc: str | None = None  # and that of gRPC, when it is the worker's own


class WindowClosed(ServingWindow):
    """A window has ended."""

    event: Literal["window"] = "window"

    def window(self) -> ServingWindow:
        """Return the telemetry item without the event's name."""
        return ServingWindow.model_validate(self.model_dump(exclude={"event"}))


class Failed(Wire):
    """The worker cannot serve and ends."""

    event: Literal["failed"] = "failed"
    reason: str
    family: Family


class Degraded(Wire):
    """Another candidate serves in place of the winner."""

    event: Literal["degraded"] = "degraded"
    winner: str
    placement: str  # what serves
    reason: str
    since: float  # seconds since 1970
    retried: tuple[float, ...] = ()  # when the winner was retried within the last day
    crashed: bool = False  # this news is of a crash or a hang of the winner's library, and not said for another reason


class Recovered(Wire):
    """The winner serves again."""

    event: Literal["recovered"] = "recovered"
    placement: str
    retried: tuple[float, ...] = ()


class Drifted(Wire):
    """On a quiet machine the placement has been slower than in its race, time after time: the race is out of date."""

    event: Literal["drifted"] = "drifted"
    placement: str
    expected_us: float
    found_us: float


class Shadowed(Wire):
    """How the next version's answers have compared with this one's so far, on live requests."""

    event: Literal["shadowed"] = "shadowed"
    socket: str  # of the next version's worker
    requests: int = Field(ge=0)
    failed: int = Field(ge=0)  # of them, by the next version
    classified: int = Field(ge=0)  # of them, both answers being classes
    agreed: int = Field(ge=0)  # of those
    snr_db: float | None = None  # of the others


WorkerEvent = Ready | WindowClosed | Degraded | Recovered | Drifted | Shadowed | Failed


class _Line(RootModel[Annotated[WorkerEvent, Field(discriminator="event")]]):
    pass


def parse_event(line: bytes) -> WorkerEvent:
    """Return the event on one line of a worker's standard output.

    Raises:
        Rejected: when it is none.
    """
    return decode(_Line, line, MAX_EVENT_BYTES).root


def family_of(error: RegattaError) -> Family:
    """Return which of the error families `error` belongs to."""
    if isinstance(error, Retryable):
        return "retryable"
    if isinstance(error, Rejected):
        return "rejected"
    return "misuse"
