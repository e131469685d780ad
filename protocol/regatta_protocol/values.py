"""Values that messages and manifests hold, and that a serving worker needs too: so they are made without pydantic.

They are frozen dataclasses, checked by their annotations wherever they are read: by pydantic as parts of a message, by
plain.py elsewhere. A value made in a program is not checked. Unknown fields inside them are passed over and not passed
on: a newer peer that has more to say says it beside them, as a new field of the message.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from regatta_protocol.bounds import Bounds
from regatta_protocol.enums import Word
from regatta_protocol.ids import ModelNameField

__all__ = [
    "MAX_MANIFEST_BYTES",
    "Accuracy",
    "Latency",
    "Plugin",
    "Power",
    "ServingWindow",
    "TensorSpec",
    "Value",
    "unknown_power",
]

MAX_MANIFEST_BYTES = 256 * 1024  # said here, for a worker reads a part of it

_Count = Annotated[int, Bounds(ge=0)]
_NotNegative = Annotated[float, Bounds(ge=0)]
_Sketch = Annotated[dict[int, int], Bounds(max_length=4096)]
_StageName = Annotated[str, Bounds(pattern="[a-z0-9_]{1,32}")]


class Value:
    """The base of these dataclasses: says to pydantic what `Wire` says for messages."""

    __pydantic_config__: ClassVar[dict[str, object]] = {
        "extra": "ignore",
        "allow_inf_nan": False,
        "ser_json_inf_nan": "null",
    }


@dataclass(frozen=True, kw_only=True)
class TensorSpec(Value):
    """An input or output of a model file. -1 in shape is a size that may change."""

    name: str
    dtype: str  # numpy's name: float32, int8, uint8, int32, …
    shape: tuple[int, ...]
    scale: float | None = None
    zero_point: int | None = None


@dataclass(frozen=True, kw_only=True)
class Plugin(Value):
    """What a delegate needs to be opened again: the library, where it is one that is loaded, and what it is told."""

    library: str | None = None
    options: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Latency(Value):
    """Percentiles of single inferences, in microseconds, over `samples` of them."""

    samples: Annotated[int, Bounds(ge=1)]
    p50_us: _NotNegative
    p90_us: _NotNegative
    p99_us: _NotNegative


@dataclass(frozen=True, kw_only=True)
class Accuracy(Value):
    """Correct answers among labelled samples."""

    correct: _Count
    total: Annotated[int, Bounds(ge=1)]
    metric: str = "top1"

    def __post_init__(self) -> None:
        if self.correct > self.total:
            raise ValueError(f"correct ({self.correct}) is above total ({self.total})")

    @property
    def value(self) -> float:
        """The share of correct answers, in [0, 1]."""
        return self.correct / self.total

    def interval(self, z: float = 1.96) -> tuple[float, float]:
        """Return Wilson's score interval (Wilson 1927), by default of 95 %."""
        n, p = self.total, self.value
        center = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, center - half), min(1.0, center + half)


@dataclass(frozen=True, kw_only=True)
class Power(Value):
    """Power of the board or one of its parts while inferring; None beside a reason when it cannot be known."""

    method: Word  # measured, estimated or none; what a newer agent calls otherwise counts as estimated
    coverage: str | None = None  # "board", "package", or the rails that were summed
    power_mw: float | None = None
    energy_per_inference_mj: float | None = None  # above idle
    energy_uncertainty_mj: float | None = None  # 95 % of measurements lie within this of the truth, but for gain
    idle_power_mw: float | None = None
    duration_s: float | None = None  # measured for so long, over all repetitions
    repetitions: int | None = None
    sensor: str | None = None
    sensor_period_ms: float | None = None
    reason: str | None = None  # why unknown, or what the figure leaves out

    def __post_init__(self) -> None:
        if self.method == "none" and (self.power_mw is not None or not self.reason):
            raise ValueError("unknown power carries a reason and no figure")


def unknown_power(reason: str) -> Power:
    """Return a power figure that says why there is none."""
    return Power(method="none", reason=reason)


@dataclass(frozen=True, kw_only=True)
class ServingWindow(Value):
    """Telemetry: what one placement served between two moments; an item of messages.TelemetryBatch.

    `latency_counts` is a sketch with relative error of at most 1 % (DDSketch's mapping): bucket index -> count of
    requests, bucket i holding latencies in (g^(i-1), g^i] microseconds with g = 1.01 / 0.99. Windows merge by adding.
    `stage_counts` has such a sketch for each stage of a request: queue, compute_input, compute_infer, compute_output.
    Some windows have none and a later one has theirs too, for four sketches are most of what a window weighs.
    """

    kind: Literal["serving"] = "serving"
    model: ModelNameField
    version: int
    placement: str
    start: float
    stop: float
    requests: _Count
    errors: _Count
    latency_counts: _Sketch = field(default_factory=dict)
    stage_counts: Annotated[dict[_StageName, _Sketch], Bounds(max_length=16)] = field(default_factory=dict)
    feedback: Accuracy | None = None  # from labelled feedback, when there was any
    power: Power | None = None
