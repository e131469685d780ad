"""What the worker counts: the running telemetry window, and totals since its start for OpenMetrics. Pure.

A request counts as an error when the model or this program failed it; what a client got wrong (4xx) is neither a
request nor an error of the window, so that a broken client cannot make a rollout roll back. Latency is from the whole
request being here to its answer being handed to the socket.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from regatta_agent.serving.events import WindowClosed
from regatta_protocol import sketch
from regatta_protocol.enums import StrEnum
from regatta_protocol.measurement import Accuracy, Power

__all__ = ["Outcome", "Placement", "Tally", "Timing"]


class Outcome(StrEnum):
    """How an infer request ended."""

    SUCCESS = "success"
    FAILURE = "failure"  # 5xx: the model or this program
    INVALID = "invalid"  # 4xx: the client
    REFUSED = "refused"  # 429 or 503: too much at once
    EXPIRED = "expired"  # 504: its own timeout passed in the queue


@dataclass(frozen=True)
class Timing:
    """One request in nanoseconds: all of it, waiting in the queue, and inside the runtime."""

    total_ns: int
    queue_ns: int = 0
    compute_ns: int = 0


@dataclass(frozen=True)
class Placement:
    """What is served; it labels every figure."""

    model: str
    version: int
    candidate_id: str


@dataclass
class Tally:
    """Counts of one worker."""

    placement: Placement
    start: float  # seconds since 1970, of the running window
    requests: int = 0
    errors: int = 0
    latency_counts: dict[int, int] = field(default_factory=dict)
    outcomes: dict[Outcome, int] = field(default_factory=lambda: dict.fromkeys(Outcome, 0))
    all_latency_counts: dict[int, int] = field(default_factory=dict)
    total_ns: int = 0
    queue_ns: int = 0
    compute_ns: int = 0

    def count(self, outcome: Outcome, timing: Timing) -> None:
        """Count one infer request."""
        self.outcomes[outcome] += 1
        if outcome is Outcome.SUCCESS:
            self.requests += 1
            sketch.add(self.latency_counts, timing.total_ns / 1000)
            self.total_ns += timing.total_ns
            self.queue_ns += timing.queue_ns
            self.compute_ns += timing.compute_ns
        elif outcome is Outcome.FAILURE:
            self.requests += 1
            self.errors += 1

    def close(self, now: float, feedback: Accuracy | None, power: Power | None) -> WindowClosed:
        """Return the window that ends now, and begin the next."""
        closed = WindowClosed(
            model=self.placement.model,
            version=self.placement.version,
            placement=self.placement.candidate_id,
            start=self.start,
            stop=now,
            requests=self.requests,
            errors=self.errors,
            latency_counts=self.latency_counts,
            feedback=feedback,
            power=power,
        )
        self.all_latency_counts = self.latency_so_far()
        self.start, self.requests, self.errors, self.latency_counts = now, 0, 0, {}
        return closed

    def latency_so_far(self) -> dict[int, int]:
        """Return the sketch of every answered request since the start."""
        return sketch.merge((self.all_latency_counts, self.latency_counts))
