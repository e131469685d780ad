"""Latency counts in logarithmic buckets: at most 1 % relative error, merged by adding. Pure.

The mapping of DDSketch (Masson, Rim, Lee 2019, section 2.1): with g = (1 + a) / (1 - a) and a = 0.01, bucket i holds
values in (g^(i-1), g^i], and 2 · g^i / (g + 1) is within a of every value in it. A sketch is a plain dict of
bucket -> count, which is what `ServingWindow.latency_counts` carries; a class around it would cost more than the add.

Values are microseconds here, though nothing depends on it. They are held to [LOWEST, HIGHEST], which bounds a sketch
to 1,728 buckets.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import chain

__all__ = [
    "GAMMA",
    "HIGHEST",
    "LOWEST",
    "RELATIVE_ERROR",
    "add",
    "bucket_of",
    "merge",
    "merge_named",
    "quantile",
    "total",
    "value_of",
]

RELATIVE_ERROR = 0.01
GAMMA = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
LOWEST = 1e-3  # a nanosecond: below what a clock tells apart
HIGHEST = 1e12  # eleven days
_INVERSE_LOG_GAMMA = 1 / math.log(GAMMA)


def bucket_of(value: float) -> int:
    """Return the bucket of `value`; what lies outside [LOWEST, HIGHEST] counts as the nearer end."""
    return math.ceil(math.log(min(max(value, LOWEST), HIGHEST)) * _INVERSE_LOG_GAMMA)


def value_of(bucket: int) -> float:
    """Return the value that is within RELATIVE_ERROR of every value in the bucket."""
    return 2.0 * GAMMA**bucket / (GAMMA + 1)


def add(counts: dict[int, int], value: float, count: int = 1) -> None:
    """Count `value` in place."""
    bucket = bucket_of(value)
    counts[bucket] = counts.get(bucket, 0) + count


def merge(sketches: Iterable[Mapping[int, int]]) -> dict[int, int]:
    """Return the sketch of all values of all sketches."""
    merged: dict[int, int] = {}
    for sketch in sketches:
        for bucket, count in sketch.items():
            merged[bucket] = merged.get(bucket, 0) + count
    return merged


def merge_named(named: Iterable[Mapping[str, Mapping[int, int]]]) -> dict[str, dict[int, int]]:
    """Return for each name the sketch of all values of its sketches."""
    listed = list(named)
    return {name: merge(one.get(name, {}) for one in listed) for name in dict.fromkeys(chain.from_iterable(listed))}


def total(counts: Mapping[int, int]) -> int:
    """Return how many values were counted."""
    return sum(counts.values())


def quantile(counts: Mapping[int, int], q: float) -> float | None:
    """Return the q-quantile (the value of rank floor(q · (n − 1))) within RELATIVE_ERROR, or None when empty.

    Raises:
        ValueError: when q is not in [0, 1].
    """
    if not 0.0 <= q <= 1.0:
        raise ValueError(f"a quantile lies in [0, 1], not at {q}")
    n = total(counts)
    if n <= 0:
        return None
    rank, seen = math.floor(q * (n - 1)), 0
    for bucket in sorted(counts):
        seen += counts[bucket]
        if seen > rank:
            return value_of(bucket)
    return value_of(max(counts))
