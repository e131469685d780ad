"""The steps of an optimization that train, each in a child process as those of `optimize.steps`.

This is the typed front: it imports no PyTorch, and says which extra to install where there is none. `train.child` runs.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from regatta_fleet.optimize.process import DEFAULT_MEMORY_BYTES, ChildAnswer, run_module
from regatta_fleet.optimize.steps import Attempt, Made, TryShares
from regatta_fleet.optimize.train.available import require_torch
from regatta_protocol.wire import Wire

__all__ = ["Distill", "Sparsify", "TrainQuantized", "TrainingResult", "TrainingSpec", "TrainingStep", "run_training"]

_TIMEOUT_S = 1800.0  # KWS takes one to two minutes on two cores; `child` trains big models for fewer epochs


class Distill(TryShares):
    """Prune shares of the multiply-accumulates, and train the rest on the original's answers."""

    kind: Literal["distill"] = "distill"
    seed: int = 0


class Sparsify(TryShares):
    """Train with ever more weights at 0."""

    kind: Literal["sparsify"] = "sparsify"
    seed: int = 0


class TrainQuantized(Wire):
    """Train the model for a precision, and write the quantized file."""

    kind: Literal["train-quantized"] = "train-quantized"
    model: str
    samples: str
    output: str
    precision: Literal["int8", "int4-weights"]
    seed: int = 0


TrainingStep = Distill | Sparsify | TrainQuantized


class TrainingSpec(Wire):
    """One step, as the child reads it."""

    step: TrainingStep = Field(discriminator="kind")


class TrainingResult(ChildAnswer):
    """What the child answers."""

    made: Made | None = None
    attempts: tuple[Attempt, ...] = ()


def run_training(
    step: TrainingStep, *, timeout_s: float = _TIMEOUT_S, memory_bytes: int = DEFAULT_MEMORY_BYTES
) -> TrainingResult:
    """Return what the step said; its file is written.

    Raises:
        Rejected: when the step refuses its input, or training crashes, takes too long or runs out of memory on it.
        Retryable: when it could not be done now (disk full).
        Misuse: when PyTorch is not installed; the text names the extra.
    """
    require_torch()
    return run_module(
        "regatta_fleet.optimize.train.child",
        TrainingSpec(step=step),
        TrainingResult,
        what=f"step {step.kind} of {step.model}",
        timeout_s=timeout_s,
        memory_bytes=memory_bytes,
    )
