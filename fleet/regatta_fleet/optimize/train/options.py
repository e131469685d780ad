"""How long and how a model is trained. Pure; without PyTorch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from regatta_protocol.errors import Rejected

__all__ = ["FitOptions"]

_MAX_EPOCHS = 10_000


@dataclass(frozen=True)
class FitOptions:
    """Adam with the learning rate falling to 0 along a half cosine (Loshchilov & Hutter 2017).

    `learning_rate` is relative: the share of a tensor's root mean square that a step moves it by at most.

    `mixed` trains on sums λ·x + (1 − λ)·x' of two samples, λ uniform in [0, 1], instead of the samples alone (mixup,
    Zhang et al. 2018; for distillation on few samples Beyer et al. 2022): the teacher answers what nobody labelled.
    """

    epochs: int = 60
    batch_size: int = 32
    learning_rate: float = 2e-3
    mixed: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.epochs <= _MAX_EPOCHS:
            raise Rejected(f"cannot train for {self.epochs} epochs: give 1 to {_MAX_EPOCHS}")
        if self.batch_size < 1:
            raise Rejected(f"cannot train in batches of {self.batch_size}: give at least 1")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise Rejected(f"cannot train at a learning rate of {self.learning_rate}: give one above 0")
