"""Merged latency sketches of serving windows: bucket index -> count, as messages.ServingWindow describes.

The number of buckets is bounded: a device that sends absurd indices cannot grow a row for ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = ["MAX_BUCKETS", "merge_counts", "quantile_us"]

_GAMMA = 1.01 / 0.99
_MIN_INDEX, _MAX_INDEX = -1024, 3071  # about 1 ps to 5e26 us: far beyond any latency on both sides
MAX_BUCKETS = _MAX_INDEX - _MIN_INDEX + 1


def merge_counts(sketches: Iterable[Mapping[int, int]]) -> dict[int, int]:
    """Return the sum of sketches; indices beyond any latency fall into the outermost bucket, negatives are left out."""
    merged: dict[int, int] = {}
    for sketch in sketches:
        for index, count in sketch.items():
            if count > 0:
                inside = min(max(index, _MIN_INDEX), _MAX_INDEX)
                merged[inside] = merged.get(inside, 0) + count
    return merged


def quantile_us(counts: Mapping[int, int], quantile: float) -> float | None:
    """Return the latency in microseconds at `quantile` in [0, 1], within 1 %; None when the sketch is empty.

    DDSketch (Masson et al. 2019), section 2.1: the value of bucket i is 2 g^i / (g + 1).
    """
    total = sum(counts.values())
    if total == 0:
        return None
    rank = quantile * (total - 1)
    seen = 0
    for index in sorted(counts):
        seen += counts[index]
        if seen > rank:
            return float(2 * _GAMMA**index / (_GAMMA + 1))
    raise AssertionError("the ranks of a sketch end with its total")
