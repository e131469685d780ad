"""What the worker counts: the running telemetry window, and totals of each placement since its start. Pure, numpy only.

An answered request leaves only its times, in a list; they are folded into sketches many at once, which with numpy costs
a tenth of adding each, when the list is full or somebody looks.

A request counts as an error when the model or this program failed it; what a client got wrong (4xx) is neither a
request nor an error of the window, so that a broken client cannot make a rollout roll back. Latency is from the whole
request being here to its answer being handed to the socket.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from regatta_agent.serving.events import WindowClosed
from regatta_protocol import sketch
from regatta_protocol.enums import StrEnum
from regatta_protocol.ids import ModelName
from regatta_protocol.values import Accuracy, Power

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


_TOLD = tuple(stage for stage in Stage if stage is not Stage.REQUEST)  # in windows, beside the whole
_STAGES_S = 300.0  # between windows that tell of stages, whose sketches weigh four times as much as all else of one
_FOLDED = 256  # requests at once: some 0.1 ms of the loop's time
_INVERSE_LOG_GAMMA = 1 / math.log(sketch.GAMMA)


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

    model: ModelName
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

    def answered(self, timings: Sequence[Timing]) -> None:
        """Count requests that were answered."""
        self.outcomes[Outcome.SUCCESS] += len(timings)
        flat = np.fromiter(chain.from_iterable(timings), dtype=np.int64)  # np.array of tuples takes ten times as long
        for stage, ns in zip(Stage, flat.reshape(len(timings), -1).T, strict=True):
            _add_all(self.stages[stage], ns)
            self.sums_ns[stage] += int(ns.sum())

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
        self.begin(placement, start)

    def begin(self, placement: Placement, start: float) -> None:
        """Count from now on; what was counted is forgotten."""
        self.placement = placement
        self.start = start
        self.requests = 0
        self.errors = 0
        self._latency_counts: dict[int, int] = {}
        self._totals = {placement.candidate_id: Totals()}
        self._recent: list[tuple[Totals, Timing]] = []  # answered, and not folded yet
        self._untold = 0  # requests whose stages no window has told of
        self._stages_at = -math.inf  # seconds since 1970, when a window last did
        self._stages_told: dict[Stage, dict[int, int]] = {stage: {} for stage in _TOLD}

    @property
    def totals(self) -> Mapping[str, Totals]:
        """The totals by candidate; a worker has a winner and a few standbys."""
        self._fold()
        return self._totals

    @property
    def is_told(self) -> bool:
        """Whether windows have told all."""
        return not (self.requests or self._untold)

    def place(self, candidate_id: str) -> None:
        """Count for another candidate from now on."""
        self.placement = replace(self.placement, candidate_id=candidate_id)
        self._totals.setdefault(candidate_id, Totals())

    def count(self, outcome: Outcome, timing: Timing, candidate_id: str | None = None) -> None:
        """Count one infer request, of the placement or of a companion beside it."""
        totals = self._of(candidate_id)
        if outcome is Outcome.SUCCESS:
            self.requests += 1
            self._untold += 1
            self._recent.append((totals, timing))
            if len(self._recent) == _FOLDED:
                self._fold()
            return
        totals.outcomes[outcome] += 1
        if outcome is Outcome.FAILURE:
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

    def _fold(self) -> None:
        """Count what was answered of late in the sketches."""
        recent, self._recent = self._recent, []
        for totals in self._totals.values():
            timings = [timing for whose, timing in recent if whose is totals]
            if timings:
                totals.answered(timings)
        if recent:
            _add_all(self._latency_counts, np.fromiter((timing.total_ns for _, timing in recent), dtype=np.int64))

    def close(self, now: float, feedback: Accuracy | None, power: Power | None, *, last: bool = False) -> WindowClosed:
        """Return the window that ends now, and begin the next; a placement's `last` tells all of its stages."""
        self._fold()
        closed = WindowClosed(
            model=self.placement.model,
            version=self.placement.version,
            placement=self.placement.candidate_id,
            start=self.start,
            stop=now,
            requests=self.requests,
            errors=self.errors,
            latency_counts=self._latency_counts,
            stage_counts=self._untold_stages() if last or self._stages_due(now) else {},
            feedback=feedback,
            power=power,
        )
        self.start, self.requests, self.errors, self._latency_counts = now, 0, 0, {}
        if closed.stage_counts:
            self._untold, self._stages_at = 0, now
        return closed

    def _stages_due(self, now: float) -> bool:
        return not 0 <= now - self._stages_at < _STAGES_S  # a clock that was set back delays nothing

    def _untold_stages(self) -> dict[str, dict[int, int]]:
        """Return the sketches of the stages since they were last told."""
        untold = {}
        for stage, told in self._stages_told.items():
            now_known = sketch.merge(totals.stages[stage] for totals in self._totals.values())
            fresh = {bucket: count - told.get(bucket, 0) for bucket, count in now_known.items()}
            untold[stage.value] = {bucket: count for bucket, count in fresh.items() if count > 0}
            self._stages_told[stage] = now_known
        return {name: counts for name, counts in untold.items() if counts}


def _add_all(counts: dict[int, int], ns: npt.NDArray[np.int64]) -> None:
    """Count each of `ns` in a sketch of microseconds, as sketch.add would one by one."""
    held = np.clip(ns / 1000, sketch.LOWEST, sketch.HIGHEST)
    buckets, numbers = np.unique(np.ceil(np.log(held) * _INVERSE_LOG_GAMMA).astype(np.int64), return_counts=True)
    for bucket, number in zip(buckets.tolist(), numbers.tolist(), strict=True):
        counts[bucket] = counts.get(bucket, 0) + number
