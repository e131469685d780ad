"""Which times of a device are believed: its clock may be at 1970, or years ahead. Pure.

What a device tells may have waited in it for weeks, so an old time is none to doubt; one that is years ago, or still to
come, is of a clock that was not set. What was measured counts all the same, under the time at which it was received.
"""

from __future__ import annotations

from dataclasses import replace

from regatta_protocol.messages import RaceItem, TelemetryBatch, TelemetryItem
from regatta_protocol.values import ServingWindow

__all__ = ["believed"]

_OLDEST_S = 366 * 86_400.0  # an outbox keeps 30 days of running, which a board that is mostly off spreads over a year
_AHEAD_S = 86_400.0  # of clocks that are set to another zone's time


def believed(batch: TelemetryBatch, now_s: float) -> TelemetryBatch:
    """Return the batch with `now_s`, seconds since 1970 by the fleet's clock, for every time that cannot be."""
    return batch.model_copy(update={"items": tuple(_believed(item, now_s) for item in batch.items)})


def _believed(item: TelemetryItem, now_s: float) -> TelemetryItem:
    if isinstance(item, RaceItem):
        return item.model_copy(update={"at": _moment(item.at, now_s)})
    if isinstance(item, ServingWindow):
        stop_s = _moment(item.stop, now_s)
        return replace(item, start=min(_moment(item.start, stop_s), stop_s), stop=stop_s)
    return item


def _moment(at_s: float, now_s: float) -> float:
    """Return `at_s`, or `now_s` when that cannot be."""
    return at_s if now_s - _OLDEST_S <= at_s <= now_s + _AHEAD_S else now_s
