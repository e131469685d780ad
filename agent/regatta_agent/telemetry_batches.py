"""What of the stored telemetry goes into one batch, on the stored bytes: windows of one placement travel as one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import RootModel, ValidationError

from regatta_agent.core.thinning import merged
from regatta_protocol.codec import MAX_INFLATED_BYTES, encode
from regatta_protocol.messages import OtherItem, RaceItem, ServingWindow, TelemetryItem

__all__ = [
    "MAX_BATCH_ITEMS",
    "MAX_BATCH_RAW_BYTES",
    "Chosen",
    "choose",
    "encode_item",
    "merge",
    "read_item",
    "series_of",
]

MAX_BATCH_ITEMS = 60
MAX_BATCH_RAW_BYTES = MAX_INFLATED_BYTES // 2  # before compression; well inside what the receiver inflates


class _Item(RootModel[TelemetryItem]):
    pass


@dataclass
class Chosen:
    """An item of a batch to be, and the rows that it was merged from, the oldest first."""

    ids: list[int]
    body: bytes


def encode_item(item: RaceItem | ServingWindow) -> bytes:
    """Return an item as it is stored.

    Raises:
        TooLarge: when it could never travel.
    """
    return encode(_Item(item), MAX_BATCH_RAW_BYTES)


def read_item(body: bytes) -> RaceItem | ServingWindow | OtherItem | None:
    """Return a stored item; None when an agent of another version wrote it and it is not understood."""
    try:
        return _Item.model_validate_json(body).root
    except ValidationError:
        return None


def series_of(item: RaceItem | ServingWindow) -> str | None:
    """Return what windows that can be merged have in common; None for a race."""
    return f"{item.model}:{item.version}:{item.placement}" if isinstance(item, ServingWindow) else None


def merge(earlier: bytes, later: bytes) -> bytes | None:
    """Return two stored windows as one, or None when that cannot be."""
    first, second = read_item(earlier), read_item(later)
    if first is None or second is None:
        return None
    window = merged(first, second)
    return None if window is None else encode(_Item(window), MAX_INFLATED_BYTES)


def choose(rows: Iterable[tuple[int, str | None, bytes]]) -> list[Chosen]:
    """Return what goes into a batch of (id, series, body), oldest first, within a batch's limits."""
    chosen: list[Chosen] = []
    latest: dict[str, Chosen] = {}
    size_bytes = 0
    for row_id, series, body in rows:
        before = latest.get(series) if series is not None else None
        both = merge(before.body, body) if before is not None else None
        if before is not None and both is not None:
            before.ids.append(row_id)
            before.body = both
            continue
        if len(chosen) >= MAX_BATCH_ITEMS or (chosen and size_bytes + len(body) > MAX_BATCH_RAW_BYTES):
            break
        chosen.append(Chosen([row_id], body))
        size_bytes += len(body)
        if series is not None:
            latest[series] = chosen[-1]
    return chosen
