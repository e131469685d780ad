"""How long and how a model is trained. Pure; without PyTorch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from regatta_protocol.errors import Rejected

__all__ = ["FitOptions", "epochs_within"]

_MAX_EPOCHS = 10_000
_LEAST_EPOCHS = 2
_MACS = 200_000_000_000  # of all forward passes of one training, about two minutes: KWS takes 26 G in 40 epochs


@dataclass(frozen=True)
class FitOptions:
    """Adam with the learning rate falling to 0 along a half cosine (Loshchilov & Hutter 2017).

    `learning_rate` is relative: the share of a tensor's root mean square that a step moves it by at most.

    `mixed` trains on sums λ·x + (1 − λ)·x' of two samples, λ uniform in [0, 1], instead of the samples alone (mixup,
    Zhang et al. 2018; for distillation on few samples Beyer et al. 2022): the teacher answers what nobody labelled.
    """

    epochs: int = 40
    batch_size: int = 32
    learning_rate: float = 3e-3
    mixed: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.epochs <= _MAX_EPOCHS:
            raise Rejected(f"cannot train for {self.epochs} epochs: give 1 to {_MAX_EPOCHS}")
        if self.batch_size < 1:
            raise Rejected(f"cannot train in batches of {self.batch_size}: give at least 1")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise Rejected(f"cannot train at a learning rate of {self.learning_rate}: give one above 0")


def epochs_within(epochs: int, macs: int, samples: int) -> int:
    """Return how many of the epochs one training takes, so that big models on many samples end too; at least two."""
    return max(_LEAST_EPOCHS, min(epochs, _MACS // max(1, macs * samples)))
