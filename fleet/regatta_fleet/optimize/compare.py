"""Compares a variant with the float model, answer by answer on the same samples. Pure.

One accuracy on 900 samples carries ±2 points, the difference of two on the same samples far less: so variants are
judged by the answers that they lose and gain, with McNemar's exact test beside them (McNemar 1947).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from regatta_runtimes.worker.score import snr_db

__all__ = ["Comparison", "compare", "refusal"]

Floats = npt.NDArray[np.float32]

_MIN_SNR_DB = 10.0  # without labels: a tenth of the power is error here; pruned KWS at 16 dB lost 2 points


@dataclass(frozen=True)
class Comparison:
    """Answers of a variant beside the float model's. The counts are None when the samples have no labels."""

    samples: int
    snr_db: float  # of output 0, the float model's as the signal
    correct: int | None = None
    gained: int | None = None  # right here, wrong in float
    lost: int | None = None  # wrong here, right in float

    @property
    def drop(self) -> float | None:
        """The share of accuracy lost against float; negative when the variant is better."""
        if self.gained is None or self.lost is None:
            return None
        return (self.lost - self.gained) / self.samples

    @property
    def p_value(self) -> float | None:
        """McNemar's exact two-sided p: how likely so lopsided a difference is when both are equally good."""
        if self.gained is None or self.lost is None:
            return None
        changed, fewer = self.gained + self.lost, min(self.gained, self.lost)
        term = tail = 1  # binomial coefficients one from the other, in whole numbers
        for k in range(fewer):
            term = term * (changed - k) // (k + 1)
            tail += term
        return min(1.0, float(2 * tail / (1 << changed)))


def compare(answers: Floats, reference: Floats, labels: npt.NDArray[np.int64] | None) -> Comparison:
    """Return how `answers` stand beside the float model's.

    Args:
        answers: real values of output 0, [n, …].
        reference: the float model's on the same samples, the same shape.
        labels: int64 [n], or None; the answer is the place of the greatest value.
    """
    noise = snr_db([answers], [reference])
    if labels is None:
        return Comparison(len(answers), noise)
    right = answers.reshape(len(answers), -1).argmax(1) == labels
    before = reference.reshape(len(reference), -1).argmax(1) == labels
    return Comparison(len(answers), noise, int(right.sum()), int((right & ~before).sum()), int((before & ~right).sum()))


def refusal(comparison: Comparison, max_drop: float) -> str | None:
    """Return why the variant is not good enough, or None when it is.

    With labels it may lose `max_drop` of accuracy; without, its outputs need 10 dB over their error.
    """
    drop = comparison.drop
    if drop is None:
        if comparison.snr_db < _MIN_SNR_DB:
            return (
                f"its outputs are {comparison.snr_db:.1f} dB over their error on {comparison.samples} unlabelled "
                f"samples, {_MIN_SNR_DB:.0f} dB are needed: give labels 'y', or more samples"
            )
        return None
    if drop > max_drop + 1e-12:
        return (
            f"loses {100 * drop:.1f} points of accuracy on {comparison.samples} samples ({comparison.lost} answers "
            f"lost, {comparison.gained} gained), the policy allows {100 * max_drop:.1f}"
        )
    return None
