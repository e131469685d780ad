"""When a candidate has warmed up, told from the medians of its rounds. Pure.

The rule is that of Georges, Buytaert and Eeckhout, "Statistically rigorous Java performance evaluation" (OOPSLA 2007):
steady once the coefficient of variation (standard deviation over mean) of the last few rounds is at most 2 %. On a
board that never comes to rest no round is steady; the measuring then ends with its budget, and the report says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, pstdev

__all__ = ["MAX_VARIATION", "WINDOW", "is_steady", "warmup_rounds"]

WINDOW = 5  # rounds looked at together
MAX_VARIATION = 0.02  # the looser of the two that Georges et al. name: boards have no quiet mode


def is_steady(medians_us: Sequence[float]) -> bool:
    """Return whether the last WINDOW rounds were steady."""
    last = medians_us[-WINDOW:]
    return len(last) == WINDOW and pstdev(last) <= MAX_VARIATION * fmean(last)


def warmup_rounds(medians_us: Sequence[float]) -> int:
    """Return how many rounds came before the first WINDOW of steady ones, at most a third of all.

    Without any steady window that is 0: what never settles did not warm up either, and each round counts.
    """
    for first in range(len(medians_us) - WINDOW + 1):
        if is_steady(medians_us[first : first + WINDOW]):
            return min(first, len(medians_us) // 3)
    return 0
