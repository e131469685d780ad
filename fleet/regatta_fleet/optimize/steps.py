"""The steps of an optimization that run models: each in a child process, since a model is code.

A crash, a hang or memory without end in a runtime ends the child and becomes an error that names the step (`process`).
This module is the typed front: it imports no runtime. `child.py` is what runs.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from regatta_fleet.optimize.process import DEFAULT_MEMORY_BYTES, ChildAnswer, run_module
from regatta_fleet.optimize.quantize.schemes import Scheme
from regatta_fleet.optimize.report import LayerReport
from regatta_protocol.wire import Wire

__all__ = [
    "Answers",
    "Attempt",
    "Check",
    "Made",
    "ModelCost",
    "Prune",
    "Quantize",
    "Search",
    "Spec",
    "Step",
    "StepResult",
    "TryShares",
    "run_step",
]


class Check(Wire):
    """Check and normalize a float model, and count its work."""

    kind: Literal["check"] = "check"
    model: str
    samples: str | None = None
    output: str  # the normalized file


class Quantize(Wire):
    """Quantize a model in one way or several: `outputs` says where each file goes.

    A scheme that comes to the same file as another of them is left out of what was made.
    """

    kind: Literal["quantize"] = "quantize"
    model: str
    samples: str
    outputs: dict[Scheme, str] = Field(min_length=1, max_length=16)


class Search(Wire):
    """Find a precision for each layer: `samples` give the ranges and judge, as `compare.refusal` with `max_drop`."""

    kind: Literal["search"] = "search"
    model: str
    samples: str
    output: str
    max_drop: float = Field(ge=0, le=1)


class TryShares(Wire):
    """What steps have in common that try shares in turn and write the first that keeps the accuracy.

    `samples` choose and fit; `held_back` judge, like `compare.refusal` with `max_drop`.
    """

    model: str
    samples: str
    held_back: str
    output: str
    shares: tuple[float, ...] = Field(min_length=1, max_length=64)
    max_drop: float = Field(ge=0, le=1)


class Prune(TryShares):
    """Of filters, with a refit each."""

    kind: Literal["prune"] = "prune"


class Answers(Wire):
    """Run a file over samples and write its real outputs: `out` float32 [n, …] of output 0."""

    kind: Literal["answers"] = "answers"
    model: str
    samples: str
    output: str


Step = Check | Quantize | Search | Prune | Answers


class Spec(Wire):
    """One step, as the child reads it."""

    step: Step = Field(discriminator="kind")


class ModelCost(Wire):
    """What a model is made of, by counting: multiply-accumulates of one inference, and weights."""

    macs: int
    weights: int


class Attempt(Wire):
    """A share of filters that was tried; `reason` says why it will not do."""

    share: float
    notes: tuple[str, ...]
    size_bytes: int
    cost: ModelCost
    reason: str | None = None


class Made(Wire):
    """A file that was quantized, or `reason` for none."""

    scheme: str
    notes: tuple[str, ...] = ()
    layers: tuple[LayerReport, ...] = ()
    reason: str | None = None


class StepResult(ChildAnswer):
    """What the child answers."""

    cost: ModelCost | None = None
    made: tuple[Made, ...] = ()
    attempts: tuple[Attempt, ...] = ()


def run_step(step: Step, *, timeout_s: float = 120.0, memory_bytes: int = DEFAULT_MEMORY_BYTES) -> StepResult:
    """Return what the step said; its files are written.

    Raises:
        Rejected: when the step refuses its input, or the runtime crashes, hangs or runs out of memory on it.
        Retryable: when it could not be done now (disk full).
        Misuse: when something is not installed.
    """
    what = f"step {step.kind} of {step.model}"
    return run_module(
        "regatta_fleet.optimize.child",
        Spec(step=step),
        StepResult,
        what=what,
        timeout_s=timeout_s,
        memory_bytes=memory_bytes,
    )
