"""Who drops out of a race's final, and whether it is decided: from the figures of rounds that all ran in turn. Pure.

Successive halving (Jamieson and Talwalkar, AISTATS 2016): the time is divided into rungs, and after each one the slower
half may drop out. Here nobody does by chance alone. A candidate is compared with the leader round by round, so that
what slows both cancels out, and it drops out only when the whole interval of that ratio lies beyond the rung's
allowance. The allowance starts wide and narrows, because what a board does for a second (another program, the host of
a virtual machine) can put any of two close candidates ahead.

Invariants:
- the leader never drops out;
- nobody drops out whose interval reaches down to the allowance, nor before MIN_ROUNDS rounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

__all__ = ["INDIFFERENCE", "MIN_ROUNDS", "Interval", "dropouts", "is_decided", "ratio_interval"]

MIN_ROUNDS = 3
INDIFFERENCE = 0.01  # two this close may be told apart by nobody: half of the regret that a race aims at
_BATCHES = 16  # load that lasts for several rounds then counts once or twice, not once a round
_DOUBT = 0.01  # that the median lies below the interval, and again above it


@dataclass(frozen=True)
class Interval:
    """The median of the ratios, and between which two of them the true median lies (98 % when there are 7 or more)."""

    low: float
    middle: float
    high: float


def ratio_interval(figures: Sequence[float], reference: Sequence[float]) -> Interval:
    """Return how many times the reference's figures the candidate's are.

    Both are in the same unit, above 0 and of the same rounds; the later rounds of the longer are left out. The interval
    is that of the sign test, between two order statistics (David and Nagaraja 2003, section 7.1): it assumes no
    distribution. Successive rounds are not independent, hence it is taken over the medians of batches of them (Law and
    Kelton's method of batch means).
    """
    ratios = [figure / base for figure, base in zip(figures, reference, strict=False)]
    size = math.ceil(len(ratios) / _BATCHES)
    batches = sorted(median(ratios[begin : begin + size]) for begin in range(0, len(ratios), size))
    outside = _outside(len(batches))
    return Interval(batches[outside], median(ratios), batches[-1 - outside])


def _outside(count: int) -> int:
    """Return how many order statistics lie outside the interval at each end: the most that _DOUBT allows."""
    outside = 0
    while sum(math.comb(count, below) for below in range(outside + 2)) * 0.5**count <= _DOUBT:
        outside += 1
    return outside


def dropouts(contenders: Mapping[str, Interval], allowance: float) -> list[str]:
    """Return who drops out at the end of a rung.

    Args:
        contenders: id -> ratio to the leader, for everyone but the leader.
        allowance: the ratio up to which a candidate stays in, above 1.
    """
    slowest_first = sorted(contenders, key=lambda name: contenders[name].middle, reverse=True)
    half = slowest_first[: (len(contenders) + 2) // 2]  # of all, the leader included, rounded up
    return [name for name in half if contenders[name].low > allowance]


def is_decided(contenders: Mapping[str, Interval]) -> bool:
    """Return whether more rounds could not matter: each other one is surely slower, or as good within INDIFFERENCE."""
    return all(
        ratio.low >= 1 or (ratio.low >= 1 - INDIFFERENCE and ratio.high <= 1 + INDIFFERENCE)
        for ratio in contenders.values()
    )
