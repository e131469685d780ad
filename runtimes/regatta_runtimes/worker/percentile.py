"""Percentiles of timings, without numpy: the process that orchestrates a race imports none."""

from __future__ import annotations

import math
from collections.abc import Sequence

from regatta_protocol.values import Latency

__all__ = ["latency_of", "percentile"]


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the nearest-rank percentile of an ascending, non-empty sequence; share in (0, 1]."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def latency_of(samples_us: Sequence[float]) -> Latency:
    """Return the percentiles of single inferences, given in microseconds, at least one."""
    ordered = sorted(samples_us)
    return Latency(
        samples=len(ordered),
        p50_us=percentile(ordered, 0.50),
        p90_us=percentile(ordered, 0.90),
        p99_us=percentile(ordered, 0.99),
    )
