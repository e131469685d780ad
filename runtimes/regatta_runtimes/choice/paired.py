"""How much accuracy one candidate loses against another on the same samples, with an interval of that difference.

Pure. Two candidates that answer the same labelled samples mostly agree: only the samples on which one is right and the
other wrong tell them apart, so the paired difference is known far better than two accuracies that merely stand side
by side. The interval is Tango's score interval (T. Tango, Statistics in Medicine 17, 1998, 891-908), which holds its
level for few samples and for differences near 0, where Wald's does not (Fagerland, Lydersen, Laake, Statistics in
Medicine 33, 2014, 2850-2875).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from regatta_protocol.measurement import PairedDrop
from regatta_protocol.values import Accuracy

__all__ = ["RightAnswers", "paired_drop", "right_answers", "tango_interval"]

_Z = 1.959963984540054  # of 95 %, two-sided
_HALVINGS = 60  # of an interval of length 2: below a double's resolution


@dataclass(frozen=True)
class RightAnswers:
    """Which of an evaluation set's first `total` samples were answered right: bit i of `bits` is sample i."""

    bits: int
    total: int
    available: int  # samples in the set

    @property
    def accuracy(self) -> Accuracy:
        return Accuracy(correct=self.bits.bit_count(), total=self.total)

    def text(self) -> str:
        """Return the bits in hexadecimal, a digit for 4 samples."""
        return f"{self.bits:x}"


def right_answers(rights: Iterable[bool], available: int) -> RightAnswers:
    """Return the answers packed; `rights` are in the set's order, from its first sample on."""
    flags = [bool(right) for right in rights]
    bits = int("".join("1" if right else "0" for right in reversed(flags)) or "0", 2)
    return RightAnswers(bits, len(flags), available)


def paired_drop(reference_id: str, reference: RightAnswers, candidate: RightAnswers) -> PairedDrop | None:
    """Return what the candidate loses, over the samples that both answered; None when there is none."""
    shared = min(reference.total, candidate.total)
    if shared == 0:
        return None
    mask = (1 << shared) - 1
    lost = (reference.bits & ~candidate.bits & mask).bit_count()
    won = (candidate.bits & ~reference.bits & mask).bit_count()
    low, high = tango_interval(lost, won, shared)
    return PairedDrop(
        reference=reference_id,
        drop=(lost - won) / shared,
        low=low,
        high=high,
        samples=shared,
        available=max(reference.available, candidate.available),
    )


def tango_interval(lost: int, won: int, samples: int, z: float = _Z) -> tuple[float, float]:
    """Return the score interval of (lost − won) / samples, in [−1, 1] and containing it.

    Args:
        lost: samples that the reference answers right and the candidate wrong.
        won: the other way round; lost + won <= samples.
        samples: above 0.
        z: quantile of the normal distribution; by default of 95 %.
    """
    estimate = (lost - won) / samples

    def score(difference: float) -> float:
        return _score(lost, won, samples, difference)

    low = _crossing(score, -1.0, estimate, z)
    high = _crossing(score, estimate, 1.0, -z)
    return min(low, estimate), max(high, estimate)


def _score(lost: int, won: int, samples: int, difference: float) -> float:
    """Return the score statistic of the hypothesis that the true difference is `difference`."""
    # The other discordant cell's probability by maximum likelihood under the hypothesis, in closed form.
    a = 2 * samples
    b = -lost - won + (2 * samples - lost + won) * difference
    c = -won * difference * (1 - difference)
    nuisance = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    variance = samples * (2 * nuisance + difference * (1 - difference))
    excess = lost - won - samples * difference
    if variance <= 0:
        return 0.0 if excess == 0 else math.copysign(math.inf, excess)
    return excess / math.sqrt(variance)


def _crossing(score: Callable[[float], float], low: float, high: float, level: float) -> float:
    """Return where the falling `score` crosses `level` between the bounds, or the bound that it never leaves."""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if score(middle) > level:
            low = middle
        else:
            high = middle
    return (low + high) / 2
