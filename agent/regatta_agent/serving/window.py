"""What the worker counts: the running telemetry window, and totals of each placement since its start. Pure.

A request counts as an error when the model or this program failed it; what a client got wrong (4xx) is neither a
request nor an error of the window, so that a broken client cannot make a rollout roll back. Latency is from the whole
request being here to its answer being handed to the socket.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from regatta_agent.serving.events import WindowClosed
from regatta_protocol import sketch
from regatta_protocol.enums import StrEnum
from regatta_protocol.measurement import Accuracy, Power

__all__ = ["Outcome", "Placement", "Stage", "Tally", "Timing", "Totals"]


class Outcome(StrEnum):
    """How an infer request ended."""

    SUCCESS = "success"
    FAILURE = "failure"  # 5xx: the model or this program
    INVALID = "invalid"  # 4xx: the client
    REFUSED = "refused"  # 429 or 503: too much at once
    EXPIRED = "expired"  # 504: its own timeout passed in the queue


class Stage(StrEnum):
    """Where a request's time goes, under Triton's names."""

    REQUEST = "request"  # all of it: from the whole request being here to its answer being handed to the socket
    QUEUE = "queue"  # waiting for its turn
    COMPUTE_INPUT = "compute_input"  # reading and checking it, and making the model's inputs of it
    COMPUTE_INFER = "compute_infer"  # inside the runtime; of the whole batch
    COMPUTE_OUTPUT = "compute_output"  # making the answer of the model's outputs


_STAGES = tuple(Stage)  # to go through an enumeration costs a Python frame for each member


class Timing(NamedTuple):
    """One request: nanoseconds of all of it and of its stages, in the order of `Stage`."""

    total_ns: int
    queue_ns: int = 0
    input_ns: int = 0
    compute_ns: int = 0
    output_ns: int = 0


@dataclass(frozen=True)
class Placement:
    """What is served; it labels every figure."""

    model: str
    version: int
    candidate_id: str


@dataclass
class Totals:
    """What one placement has done since the worker's start.

    `stages`: sketches of microseconds (protocol/sketch.py: within 1 %, merged by adding); `sums_ns` are exact.
    `batches`: rows computed together -> how many times.
    """

    outcomes: dict[Outcome, int] = field(default_factory=lambda: dict.fromkeys(Outcome, 0))
    stages: dict[Stage, dict[int, int]] = field(default_factory=lambda: {stage: {} for stage in Stage})
    sums_ns: dict[Stage, int] = field(default_factory=lambda: dict.fromkeys(Stage, 0))
    batches: dict[int, int] = field(default_factory=dict)

    def count(self, outcome: Outcome, timing: Timing) -> None:
        """Count one request."""
        self.outcomes[outcome] += 1
        if outcome is not Outcome.SUCCESS:
            return
        for stage, ns in zip(_STAGES, timing, strict=True):
            sketch.add(self.stages[stage], ns / 1000)
            self.sums_ns[stage] += ns

    def count_batch(self, rows: int) -> None:
        """Count one inference of so many rows."""
        self.batches[rows] = self.batches.get(rows, 0) + 1


class Tally:
    """Counts of one worker: the running window, and totals of each placement."""

    def __init__(self, placement: Placement, start: float) -> None:
        """Begin.

        Args:
            placement: what serves.
            start: seconds since 1970, of the running window.
        """
        self.placement = placement
        self.start = start
        self.requests = 0
        self.errors = 0
        self._latency_counts: dict[int, int] = {}
        self._totals = {placement.candidate_id: Totals()}

    @property
    def totals(self) -> Mapping[str, Totals]:
        """The totals by candidate; a worker has a winner and a few standbys."""
        return self._totals

    def place(self, candidate_id: str) -> None:
        """Count for another candidate from now on."""
        self.placement = replace(self.placement, candidate_id=candidate_id)
        self._totals.setdefault(candidate_id, Totals())

    def count(self, outcome: Outcome, timing: Timing, candidate_id: str | None = None) -> None:
        """Count one infer request, of the placement or of a companion beside it."""
        self._of(candidate_id).count(outcome, timing)
        if outcome is Outcome.SUCCESS:
            self.requests += 1
            sketch.add(self._latency_counts, timing.total_ns / 1000)
        elif outcome is Outcome.FAILURE:
            self.requests += 1
            self.errors += 1

    def count_batch(self, rows: int, candidate_id: str | None = None) -> None:
        """Count one inference of so many rows, of the placement or of a companion beside it."""
        self._of(candidate_id).count_batch(rows)

    def _of(self, candidate_id: str | None) -> Totals:
        candidate = candidate_id or self.placement.candidate_id
        found = self._totals.get(candidate)
        if found is None:  # not setdefault: making one costs as much as all other counting
            found = self._totals[candidate] = Totals()
        return found

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
            latency_counts=self._latency_counts,
            feedback=feedback,
            power=power,
        )
        self.start, self.requests, self.errors, self._latency_counts = now, 0, 0, {}
        return closed
