"""A figure over several seeds: its mean and how far that can be trusted. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Spread"]

# Student's t, two-sided 95 %, by degrees of freedom; beyond ten within 12 % of the normal 1.96.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclass(frozen=True)
class Spread:
    """The values of a figure, one a seed."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of some values."""
        return cls(tuple(values))

    @property
    def mean(self) -> float:
        """The mean."""
        return statistics.fmean(self.values)

    @property
    def margin(self) -> float | None:
        """Half of the mean's 95 % confidence interval by Student's t; None for a single value."""
        count = len(self.values)
        if count < 2:
            return None
        factor = _T95[min(count - 2, len(_T95) - 1)]
        return factor * statistics.stdev(self.values) / math.sqrt(count)

    def __str__(self) -> str:
        margin = self.margin
        return f"{self.mean:.3f}" if margin is None else f"{self.mean:.3f} ± {margin:.3f}"
