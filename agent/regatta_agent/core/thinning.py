"""Windows of telemetry merged: fewer and longer ones say the same sums in fewer bytes. Pure.

What was served is only ever added up in the fleet, and a sketch of latencies merges by adding (sketch.py), so merging
loses when within a window something happened, and nothing else.
"""

from __future__ import annotations

from regatta_protocol import sketch
from regatta_protocol.messages import OtherItem, RaceItem
from regatta_protocol.values import Accuracy, ServingWindow

__all__ = ["MAX_BUCKETS", "merged"]

_Item = RaceItem | ServingWindow | OtherItem
MAX_BUCKETS = 4096  # of a sketch that a window can carry (messages.py)


def merged(earlier: _Item, later: _Item) -> ServingWindow | None:
    """Return one window that says what both say, or None: they are of different placements, or no windows.

    Power is a state and no sum: the later one's counts, where it has any.
    """
    if not isinstance(earlier, ServingWindow) or not isinstance(later, ServingWindow):
        return None
    if (earlier.model, earlier.version, earlier.placement) != (later.model, later.version, later.placement):
        return None
    latency_counts = sketch.merge((earlier.latency_counts, later.latency_counts))
    stage_counts = sketch.merge_named((earlier.stage_counts, later.stage_counts))
    feedback = _added(earlier.feedback, later.feedback)
    widest = max(map(len, (latency_counts, *stage_counts.values())))
    if widest > MAX_BUCKETS or (feedback is None and (earlier.feedback or later.feedback)):
        return None
    return ServingWindow(
        model=earlier.model,
        version=earlier.version,
        placement=earlier.placement,
        start=min(earlier.start, later.start),
        stop=max(earlier.stop, later.stop),
        requests=earlier.requests + later.requests,
        errors=earlier.errors + later.errors,
        latency_counts=latency_counts,
        stage_counts=stage_counts,
        feedback=feedback,
        power=later.power or earlier.power,
    )


def _added(first: Accuracy | None, second: Accuracy | None) -> Accuracy | None:
    """Return the sum of two counts of right answers; None when neither is there, or their metrics differ."""
    if first is None or second is None:
        return first or second
    if first.metric != second.metric:
        return None
    return Accuracy(correct=first.correct + second.correct, total=first.total + second.total, metric=first.metric)
