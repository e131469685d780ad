"""Whether a figure drifts over a long run: a robust slope with its interval, and what growth matters. Pure.

The Theil–Sen slope (Sen 1968: the median of all pairwise slopes, with Kendall's interval) is not moved by spikes, of
which a run with faults is full. Samples near each other are alike, so that the interval of all would be too narrow:
the run is cut into blocks, and each block counts as its median.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

__all__ = ["Trend", "trend_of"]

_SETTLING = 0.25  # of the run: caches and arenas fill, then it counts
_BLOCKS = 24
_LEAST_BLOCKS = 6  # fewer give no interval worth the name
_CONFIDENCE = 0.99  # a run looks at some ten figures: one false alarm in ten runs at most


@dataclass(frozen=True)
class Trend:
    """A figure's course after settling."""

    median: float
    slope_per_h: float
    low_per_h: float
    high_per_h: float
    growth: float  # what the lower end of the slope comes to over the time looked at; below 0 it shrinks
    allowed: float  # more than that is drift

    @property
    def drifts(self) -> bool:
        """Whether it surely grows, and by more than is allowed."""
        return self.growth > self.allowed


def trend_of(times_s: Sequence[float], values: Sequence[float], allowed: float, allowed_share: float) -> Trend | None:
    """Return the trend of a figure, or None when the run was too short to tell.

    Args:
        times_s: seconds, ascending.
        values: as many.
        allowed: growth over the time looked at that is no drift, in the figure's unit;
        allowed_share: or as a share of its median, whichever is more.
    """
    if len(times_s) != len(values):
        raise ValueError(f"{len(times_s)} times are no match for {len(values)} values")
    if not times_s:
        return None
    begin_s = times_s[0] + (times_s[-1] - times_s[0]) * _SETTLING
    kept = [(time_s, value) for time_s, value in zip(times_s, values, strict=True) if time_s >= begin_s]
    blocks = [block for block in _cut(kept, _BLOCKS) if block]
    if len(blocks) < _LEAST_BLOCKS:
        return None
    at_h = [statistics.median(time_s for time_s, _ in block) / 3600 for block in blocks]
    of = [statistics.median(value for _, value in block) for block in blocks]
    slope, _, low, high = stats.theilslopes(of, at_h, alpha=_CONFIDENCE)
    median = statistics.median(of)
    growth = float(low) * (at_h[-1] - at_h[0])
    return Trend(median, float(slope), float(low), float(high), growth, max(allowed, allowed_share * median))


def _cut(samples: Sequence[tuple[float, float]], count: int) -> list[Sequence[tuple[float, float]]]:
    """Return the samples in `count` runs of almost equal length."""
    ends = [round(len(samples) * number / count) for number in range(count + 1)]
    return [samples[start:end] for start, end in itertools.pairwise(ends)]
