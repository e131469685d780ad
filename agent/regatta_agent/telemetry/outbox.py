"""Telemetry that waits for the broker, in SQLite: stored before it is sent, deleted when the broker has it.

Invariants:
- An item belongs to at most one batch. A batch keeps its id and its items until it is acknowledged, over restarts,
  so the server can count a repeated one once.
- The items are bounded by bytes. When there is no room the oldest windows of a placement are merged, which loses no
  sum (core/thinning.py); only when nothing can be merged the oldest items go, or the new one where all are in batches.
- They are bounded by age, counted in time that the agent ran: a clock that jumps by years ages nothing.
- How many were merged and how many are lost is kept, and the server is told of the lost ones in the next batch.
- Telemetry never stops the agent: where the file cannot be used (outbox_file.py), what was lost is counted.
"""

from __future__ import annotations

import logging
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

from regatta_agent.telemetry.batches import MAX_BATCH_ITEMS, Chosen, choose, encode_item, merge, read_item, series_of
from regatta_agent.telemetry.outbox_file import OutboxFile, counter
from regatta_protocol.codec import encode_zlib
from regatta_protocol.errors import Retryable, TooLarge
from regatta_protocol.ids import DeviceId
from regatta_protocol.messages import OtherItem, RaceItem, TelemetryBatch
from regatta_protocol.values import ServingWindow

__all__ = ["MAX_BATCH_ITEMS", "Outbox"]

logger = logging.getLogger(__name__)

_MAX_LOOKED_AT = 600  # items, for a batch or for what can be merged
_COUNT = "INSERT INTO counters VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value"


class Outbox:
    """The stored telemetry of one device. Used by one thread."""

    def __init__(
        self,
        path: Path,
        device: DeviceId,
        max_bytes: int,
        new_id: Callable[[], str] = lambda: uuid.uuid4().hex,
        *,
        max_age_s: float = float("inf"),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file = OutboxFile(path, monotonic)
        self._device = device
        self._max_bytes = max_bytes
        self._new_id = new_id
        self._max_age_s = max_age_s
        self._lost = 0  # items since one was stored last

    def open(self) -> None:
        """Open the file, or begin a new one when it is damaged; where neither can be done, the next use tries again."""
        try:
            with self._file.using():
                return
        except Retryable as err:
            if not self._file.is_open:
                logger.error("event=outbox_unusable error=%s action=telemetry_is_lost_and_counted", err)

    def close(self) -> None:
        """Close the file. May be called twice."""
        self._file.close()

    def put(self, item: RaceItem | ServingWindow) -> None:
        """Store one item; when it does not fit, the oldest are merged, and at last go.

        Raises:
            StorageFull, Retryable: when the disk is full or the file cannot be used; the item is lost, and counted as
                dropped with the next one stored.
            TooLarge: when it could never travel.
        """
        body = encode_item(item)
        try:
            with self._file.using() as database:
                _count_dropped(database, self._lost)
                self._expire(database)
                if self._make_room(database, len(body)):
                    database.execute(
                        "INSERT INTO items (size_bytes, body, series, ran_s) VALUES (?, ?, ?, ?)",
                        (len(body), body, series_of(item), self._file.ran_s()),
                    )
                database.execute("INSERT OR REPLACE INTO counters VALUES ('ran_s', ?)", (int(self._file.ran_s()),))
        except Retryable:
            self._lost += 1
            raise
        self._lost = 0

    def lose(self) -> None:
        """Count an item as lost that nobody tried to store."""
        self._lost += 1

    def waiting(self) -> int:
        """Return how many items are not acknowledged yet."""
        with self._file.using() as database:
            return int(database.execute("SELECT COUNT(*) FROM items").fetchone()[0])

    def unsent(self) -> int:
        """Return how many items are in no batch yet."""
        with self._file.using() as database:
            return int(database.execute("SELECT COUNT(*) FROM items WHERE batch IS NULL").fetchone()[0])

    def batches(self) -> list[str]:
        """Return the batches that were made and not acknowledged, oldest first."""
        grouped = "SELECT batch FROM items WHERE batch IS NOT NULL GROUP BY batch ORDER BY MIN(id)"
        with self._file.using() as database:
            return [str(row[0]) for row in database.execute(grouped)]

    def new_batch(self) -> str | None:
        """Put the oldest free items into a new batch and return its id; None when there are none.

        Windows of one placement travel as one: what waited for long is not sent in as many pieces as it came in.
        """
        free = "SELECT id, series, body FROM items WHERE batch IS NULL ORDER BY id LIMIT ?"
        if self.unsent() == 0:
            return None
        with self._file.using() as database:
            self._expire(database)
            chosen = choose(database.execute(free, (_MAX_LOOKED_AT,)).fetchall())
            return self._bind(database, chosen) if chosen else None

    def payload(self, batch: str) -> bytes | None:
        """Return the batch as it travels; None when it is gone, or was split because it was too large to travel."""
        with self._file.using() as database:
            rows = database.execute("SELECT id, body FROM items WHERE batch = ? ORDER BY id", (batch,)).fetchall()
            dropped = database.execute("SELECT dropped FROM batches WHERE id = ?", (batch,)).fetchone()
        items: list[RaceItem | ServingWindow | OtherItem] = []
        for row_id, body in rows:
            item = read_item(body)
            if item is None:
                logger.error("event=telemetry_unreadable item=%d", row_id)
            else:
                items.append(item)
        if not items:
            self.acknowledge(batch)
            return None
        message = TelemetryBatch(
            id=batch, device=self._device, dropped=int(dropped[0]) if dropped else 0, items=tuple(items)
        )
        try:
            return encode_zlib(message)
        except TooLarge:
            self._split(batch, [int(row[0]) for row in rows])
            return None

    def acknowledge(self, batch: str) -> None:
        """Forget a batch that the broker has taken over."""
        with self._file.using() as database:
            database.execute("DELETE FROM items WHERE batch = ?", (batch,))
            database.execute("DELETE FROM batches WHERE id = ?", (batch,))

    def _expire(self, database: sqlite3.Connection) -> None:
        oldest_s = self._file.ran_s() - self._max_age_s
        gone = database.execute("DELETE FROM items WHERE batch IS NULL AND ran_s < ?", (oldest_s,)).rowcount
        _count_dropped(database, gone)

    def _make_room(self, database: sqlite3.Connection, size_bytes: int) -> bool:
        """Return whether `size_bytes` more fit now; what does not is counted as dropped."""
        free = "SELECT id, series, size_bytes FROM items WHERE batch IS NULL ORDER BY id LIMIT ?"
        while _measured(database) + size_bytes > self._max_bytes:
            rows = database.execute(free, (_MAX_LOOKED_AT,)).fetchall()
            if _thin(database, rows):
                continue
            _count_dropped(database, 1)
            if not rows:
                return False
            database.execute("DELETE FROM items WHERE id = ?", (rows[0][0],))
        return True

    def _bind(self, database: sqlite3.Connection, chosen: Iterable[Chosen]) -> str:
        batch = self._new_id()
        database.execute("INSERT INTO batches VALUES (?, ?)", (batch, counter(database, "dropped")))
        database.execute("DELETE FROM counters WHERE name = 'dropped'")
        for one in chosen:
            first, *others = one.ids
            database.executemany("DELETE FROM items WHERE id = ?", [(row_id,) for row_id in others])
            database.execute(
                "UPDATE items SET batch = ?, body = ?, size_bytes = ? WHERE id = ?",
                (batch, one.body, len(one.body), first),
            )
        return batch

    def _split(self, batch: str, ids: list[int]) -> None:
        """Make two batches of one that is too large; a single item that is too large is dropped and counted."""
        with self._file.using() as database:
            if len(ids) == 1:
                logger.error("event=telemetry_dropped reason=too_large batch=%s", batch)
                database.execute("DELETE FROM items WHERE id = ?", (ids[0],))
                _count_dropped(database, 1)
                database.execute("DELETE FROM batches WHERE id = ?", (batch,))
                return
            second = self._new_id()
            database.execute("INSERT INTO batches VALUES (?, 0)", (second,))
            half = ids[len(ids) // 2 :]
            database.executemany("UPDATE items SET batch = ? WHERE id = ?", [(second, row_id) for row_id in half])


def _thin(database: sqlite3.Connection, rows: Iterable[tuple[int, str | None, int]]) -> bool:
    """Merge the two oldest windows of one placement; return whether there were any."""
    first: dict[str, tuple[int, int]] = {}
    for row_id, series, size_bytes in rows:
        if series is None:
            continue
        if series in first:
            earlier_id, earlier_bytes = first[series]
            body = merge(_body(database, earlier_id), _body(database, row_id))
            if body is not None and len(body) < earlier_bytes + size_bytes:
                database.execute("DELETE FROM items WHERE id = ?", (earlier_id,))
                database.execute("UPDATE items SET body = ?, size_bytes = ? WHERE id = ?", (body, len(body), row_id))
                database.execute(_COUNT, ("thinned", 1))
                return True
        first[series] = (row_id, size_bytes)
    return False


def _body(database: sqlite3.Connection, row_id: int) -> bytes:
    return bytes(database.execute("SELECT body FROM items WHERE id = ?", (row_id,)).fetchone()[0])


def _count_dropped(database: sqlite3.Connection, more: int) -> None:
    """Count what is lost, twice: until the server is told, and for ever."""
    if more > 0:
        database.execute(_COUNT, ("dropped", more))
        database.execute(_COUNT, ("dropped_ever", more))


def _measured(database: sqlite3.Connection) -> int:
    return int(database.execute("SELECT COALESCE(SUM(size_bytes), 0) FROM items").fetchone()[0])
