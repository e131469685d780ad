"""Telemetry that waits for the broker, in SQLite: stored before it is sent, deleted when the broker has it.

Invariants:
- An item belongs to at most one batch. A batch keeps its id and its items until it is acknowledged, over restarts,
  so the server can count a repeated one once.
- The items are bounded by bytes. When there is no room the oldest windows of a placement are merged, which loses no
  sum (core/thinning.py); only when nothing can be merged the oldest items go, or the new one where all are in batches.
- They are bounded by age, counted in time that the agent ran: a clock that jumps by years ages nothing.
- How many went is kept, and told to the server in the next batch.
- Telemetry never stops the agent: a damaged file is put aside and begun anew, and without one a little is in memory.
"""

from __future__ import annotations

import logging
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from regatta_agent.batching import MAX_BATCH_ITEMS, Chosen, choose, encode_item, merge, read_item, series_of
from regatta_protocol.codec import encode_zlib
from regatta_protocol.errors import RegattaError, StorageFull, TooLarge
from regatta_protocol.ids import DeviceId
from regatta_protocol.messages import RaceItem, ServingWindow, TelemetryBatch

__all__ = ["MAX_BATCH_ITEMS", "Outbox"]

logger = logging.getLogger(__name__)

_MAX_LOOKED_AT = 600  # items, for a batch or for what can be merged
_BUSY_TIMEOUT_S = 5.0
_MEMORY_BYTES = 262_144  # kept without a file

_SCHEMA = """
CREATE TABLE IF NOT EXISTS items (
    id INTEGER PRIMARY KEY AUTOINCREMENT, batch TEXT, size_bytes INTEGER NOT NULL, body BLOB NOT NULL,
    series TEXT, ran_s REAL NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS items_by_batch ON items (batch);
CREATE TABLE IF NOT EXISTS batches (id TEXT PRIMARY KEY, dropped INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
"""
_ADDED_COLUMNS = {"series": "TEXT", "ran_s": "REAL NOT NULL DEFAULT 0"}  # to files of agents before 0.2
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
        self._path = path
        self._device = device
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._new_id = new_id
        self._monotonic = monotonic
        self._database: sqlite3.Connection | None = None
        self._ran_before_s = 0.0  # what the agent had run when it last stored something, less what the clock said
        self._unwritten = 0  # items lost to a full disk, which could not be counted there

    def open(self) -> None:
        """Open the file, or begin a new one when it is damaged; where none can be written, keep a little in memory."""
        try:
            self._connect(str(self._path))
        except sqlite3.OperationalError as err:  # full, read-only, locked: not the content's fault
            self._keep_in_memory(err)
        except sqlite3.DatabaseError as err:
            self._begin_anew(err)

    def close(self) -> None:
        """Close the file. May be called twice."""
        if self._database is not None:
            self._database.close()
            self._database = None

    def put(self, item: RaceItem | ServingWindow) -> None:
        """Store one item; when it does not fit, the oldest are merged, and at last go.

        Raises:
            StorageFull: when the disk takes nothing; the item is lost, and counted once it takes something again.
            TooLarge: when it could never travel.
        """
        self._unwritten += 1
        body = encode_item(item)
        with self._writing() as database:
            self._count("dropped", self._unwritten - 1)
            self._expire(database)
            if self._make_room(database, len(body)):
                database.execute(
                    "INSERT INTO items (size_bytes, body, series, ran_s) VALUES (?, ?, ?, ?)",
                    (len(body), body, series_of(item), self._ran_s()),
                )
            database.execute("INSERT OR REPLACE INTO counters VALUES ('ran_s', ?)", (int(self._ran_s()),))
        self._unwritten = 0

    def waiting(self) -> int:
        """Return how many items are not acknowledged yet."""
        return int(self._open.execute("SELECT COUNT(*) FROM items").fetchone()[0])

    def unsent(self) -> int:
        """Return how many items are in no batch yet."""
        return int(self._open.execute("SELECT COUNT(*) FROM items WHERE batch IS NULL").fetchone()[0])

    def batches(self) -> list[str]:
        """Return the batches that were made and not acknowledged, oldest first."""
        rows = self._open.execute("SELECT batch FROM items WHERE batch IS NOT NULL GROUP BY batch ORDER BY MIN(id)")
        return [str(row[0]) for row in rows]

    def new_batch(self) -> str | None:
        """Put the oldest free items into a new batch and return its id; None when there are none.

        Windows of one placement travel as one: what waited for long is not sent in as many pieces as it came in.

        Raises:
            StorageFull: when the disk takes nothing; nothing has changed.
        """
        if self.unsent() == 0:
            return None
        with self._writing() as database:
            self._expire(database)
            rows = database.execute(
                "SELECT id, series, body FROM items WHERE batch IS NULL ORDER BY id LIMIT ?", (_MAX_LOOKED_AT,)
            )
            chosen = choose(rows.fetchall())
            return self._bind(database, chosen) if chosen else None

    def payload(self, batch: str) -> bytes | None:
        """Return the batch as it travels; None when it is gone, or was split because it was too large to travel."""
        rows = self._open.execute("SELECT id, body FROM items WHERE batch = ? ORDER BY id", (batch,)).fetchall()
        items: list[RaceItem | ServingWindow] = []
        for row_id, body in rows:
            item = read_item(body)
            if item is None:
                logger.error("event=telemetry_unreadable item=%d", row_id)
            else:
                items.append(item)
        dropped = self._open.execute("SELECT dropped FROM batches WHERE id = ?", (batch,)).fetchone()
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
        """Forget a batch that the broker has taken over.

        Raises:
            StorageFull: when the disk takes nothing; the batch is still there.
        """
        with self._writing() as database:
            database.execute("DELETE FROM items WHERE batch = ?", (batch,))
            database.execute("DELETE FROM batches WHERE id = ?", (batch,))

    @property
    def _open(self) -> sqlite3.Connection:
        if self._database is None:
            raise RegattaError(f"the outbox {self._path} is not open")
        return self._database

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Change the file in one transaction, or not at all."""
        try:
            with self._open as database:
                yield database
        except sqlite3.OperationalError as err:
            raise StorageFull(
                f"telemetry cannot be kept in {self._path}: {err}; free space or make it writable"
            ) from err
        except (sqlite3.IntegrityError, sqlite3.ProgrammingError):  # a bug of ours, and no damage
            raise
        except sqlite3.DatabaseError as err:
            self._begin_anew(err)
            raise StorageFull(f"telemetry in {self._path} was damaged ({err}) and is begun anew") from err

    def _begin_anew(self, reason: sqlite3.DatabaseError) -> None:
        aside = self._path.with_suffix(".damaged")
        logger.error("event=outbox_damaged path=%s error=%s action=put_aside_as %s", self._path, reason, aside.name)
        self.close()
        try:
            for suffix in ("-wal", "-shm"):
                self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
            self._path.replace(aside)
            self._connect(str(self._path))
        except (OSError, sqlite3.DatabaseError) as err:
            self._keep_in_memory(err)

    def _keep_in_memory(self, reason: Exception) -> None:
        """Go on without the file, so that the agent serves; the next start tries it again."""
        logger.error("event=outbox_in_memory path=%s error=%s", self._path, reason)
        self.close()
        self._max_bytes = min(self._max_bytes, _MEMORY_BYTES)
        self._connect(":memory:")

    def _connect(self, name: str) -> None:
        self._database = sqlite3.connect(name, timeout=_BUSY_TIMEOUT_S, check_same_thread=True)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.execute("PRAGMA cache_size = -256")  # KiB, of 2 MB: this process shall be small
        self._database.executescript(_SCHEMA)
        present = {row[1] for row in self._database.execute("PRAGMA table_info(items)")}
        for name, kind in _ADDED_COLUMNS.items():
            if name not in present:
                self._database.execute(f"ALTER TABLE items ADD COLUMN {name} {kind}")
        self._ran_before_s = self._counter("ran_s") - self._monotonic()

    def _ran_s(self) -> float:
        """Return how long agents have run on this file, as far as was stored."""
        return self._ran_before_s + self._monotonic()

    def _measure(self) -> int:
        return int(self._open.execute("SELECT COALESCE(SUM(size_bytes), 0) FROM items").fetchone()[0])

    def _counter(self, name: str) -> int:
        row = self._open.execute("SELECT value FROM counters WHERE name = ?", (name,)).fetchone()
        return int(row[0]) if row is not None else 0

    def _count(self, name: str, more: int) -> None:
        """Add to a counter; what is dropped counts twice: until it is told, and for ever."""
        if more:
            self._open.execute(_COUNT, (name, more))
            if name == "dropped":
                self._open.execute(_COUNT, ("dropped_ever", more))

    def _expire(self, database: sqlite3.Connection) -> None:
        oldest_s = self._ran_s() - self._max_age_s
        gone = database.execute("DELETE FROM items WHERE batch IS NULL AND ran_s < ?", (oldest_s,)).rowcount
        self._count("dropped", max(0, gone))

    def _make_room(self, database: sqlite3.Connection, size_bytes: int) -> bool:
        """Return whether `size_bytes` more fit now; what does not is counted as dropped."""
        while self._measure() + size_bytes > self._max_bytes:
            rows = database.execute(
                "SELECT id, series, size_bytes FROM items WHERE batch IS NULL ORDER BY id LIMIT ?", (_MAX_LOOKED_AT,)
            ).fetchall()
            if self._thin(database, rows):
                continue
            self._count("dropped", 1)
            if not rows:
                return False
            database.execute("DELETE FROM items WHERE id = ?", (rows[0][0],))
        return True

    def _thin(self, database: sqlite3.Connection, rows: Iterable[tuple[int, str | None, int]]) -> bool:
        """Merge the two oldest windows of one placement; return whether there were any."""
        first: dict[str, tuple[int, int]] = {}
        for row_id, series, size_bytes in rows:
            if series is None:
                continue
            if series not in first:
                first[series] = (row_id, size_bytes)
                continue
            earlier_id, earlier_bytes = first[series]
            body = merge(self._body(database, earlier_id), self._body(database, row_id))
            if body is None or len(body) >= earlier_bytes + size_bytes:
                first[series] = (row_id, size_bytes)
                continue
            database.execute("DELETE FROM items WHERE id = ?", (earlier_id,))
            database.execute("UPDATE items SET body = ?, size_bytes = ? WHERE id = ?", (body, len(body), row_id))
            self._count("thinned", 1)
            return True
        return False

    def _body(self, database: sqlite3.Connection, row_id: int) -> bytes:
        return bytes(database.execute("SELECT body FROM items WHERE id = ?", (row_id,)).fetchone()[0])

    def _bind(self, database: sqlite3.Connection, chosen: Iterable[Chosen]) -> str:
        batch = self._new_id()
        database.execute("INSERT INTO batches VALUES (?, ?)", (batch, self._counter("dropped")))
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
        with self._writing() as database:
            if len(ids) == 1:
                logger.error("event=telemetry_dropped reason=too_large batch=%s", batch)
                database.execute("DELETE FROM items WHERE id = ?", (ids[0],))
                self._count("dropped", 1)
                database.execute("DELETE FROM batches WHERE id = ?", (batch,))
                return
            second = self._new_id()
            database.execute("INSERT INTO batches VALUES (?, 0)", (second,))
            half = ids[len(ids) // 2 :]
            database.executemany("UPDATE items SET batch = ? WHERE id = ?", [(second, row_id) for row_id in half])
