"""What of the stored telemetry goes into one batch, on the stored bytes: windows of one placement travel as one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from regatta_agent.core.thinning import merged
from regatta_protocol.codec import MAX_INFLATED_BYTES, decode, encode
from regatta_protocol.errors import Rejected, TooLarge
from regatta_protocol.messages import OtherItem, RaceItem
from regatta_protocol.plain import parse_json, read, to_json
from regatta_protocol.values import ServingWindow

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
    return _encoded(item, MAX_BATCH_RAW_BYTES)


def read_item(body: bytes) -> RaceItem | ServingWindow | OtherItem | None:
    """Return a stored item; None when an agent of another version wrote it and it is not understood."""
    try:
        document = parse_json(body)
        kind = document.get("kind") if isinstance(document, dict) else None
        if kind == "serving":
            return read(ServingWindow, document)
        if kind == "race":
            return decode(RaceItem, body, MAX_INFLATED_BYTES)
        return decode(OtherItem, body, MAX_INFLATED_BYTES)
    except Rejected:
        return None


def _encoded(item: RaceItem | ServingWindow, limit_bytes: int) -> bytes:
    """Return an item as it is stored: of what a message holds of many kinds, just the class of this one is needed."""
    if isinstance(item, RaceItem):
        return encode(item, limit_bytes)
    data = to_json(item)
    if len(data) > limit_bytes:
        raise TooLarge(f"a telemetry window of {len(data)} bytes is over the limit of {limit_bytes}")
    return data


def series_of(item: RaceItem | ServingWindow) -> str | None:
    """Return what windows that can be merged have in common; None for a race."""
    return f"{item.model}:{item.version}:{item.placement}" if isinstance(item, ServingWindow) else None


def merge(earlier: bytes, later: bytes) -> bytes | None:
    """Return two stored windows as one, or None when that cannot be."""
    first, second = read_item(earlier), read_item(later)
    if first is None or second is None:
        return None
    window = merged(first, second)
    return None if window is None else _encoded(window, MAX_INFLATED_BYTES)


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
