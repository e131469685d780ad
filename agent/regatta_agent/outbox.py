"""Telemetry that waits for the broker, in SQLite: stored before it is sent, deleted when the broker has it.

Invariants:
- An item belongs to at most one batch. A batch keeps its id and its items until it is acknowledged, over restarts,
  so the server can count a repeated one once.
- The file is bounded by bytes: the oldest items that are in no batch go first, and how many went is told to the
  server in the next batch.
- Telemetry never stops the agent. A damaged file is put aside and begun anew; one that cannot be used now (a full disk,
  a folder that takes nothing, no descriptor left) is opened again at the next use, and what was lost is counted.
"""

from __future__ import annotations

import logging
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from pydantic import RootModel

from regatta_protocol.codec import MAX_INFLATED_BYTES, encode, encode_zlib
from regatta_protocol.errors import Retryable, StorageFull, TooLarge
from regatta_protocol.ids import DeviceId
from regatta_protocol.messages import OtherItem, RaceItem, ServingWindow, TelemetryBatch, TelemetryItem

__all__ = ["MAX_BATCH_ITEMS", "Outbox"]

logger = logging.getLogger(__name__)

MAX_BATCH_ITEMS = 60
_MAX_BATCH_RAW_BYTES = MAX_INFLATED_BYTES // 2  # before compression; well inside what the receiver inflates
_BUSY_TIMEOUT_S = 5.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS items (
    id INTEGER PRIMARY KEY AUTOINCREMENT, batch TEXT, size_bytes INTEGER NOT NULL, body BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS items_by_batch ON items (batch);
CREATE TABLE IF NOT EXISTS batches (id TEXT PRIMARY KEY, dropped INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
"""


class _Item(RootModel[TelemetryItem]):
    pass


class Outbox:
    """The stored telemetry of one device. Used by one thread."""

    def __init__(
        self, path: Path, device: DeviceId, max_bytes: int, new_id: Callable[[], str] = lambda: uuid.uuid4().hex
    ) -> None:
        self._path = path
        self._device = device
        self._max_bytes = max_bytes
        self._new_id = new_id
        self._database: sqlite3.Connection | None = None
        self._size_bytes = 0
        self._lost = 0  # items since one was stored last

    def open(self) -> None:
        """Open the file, or begin a new one when it is damaged; where neither can be done, the next use tries again."""
        try:
            with self._using():
                return
        except Retryable as err:
            if self._database is None:
                logger.error("event=outbox_unusable error=%s action=telemetry_is_lost_and_counted", err)

    def close(self) -> None:
        """Close the file. May be called twice."""
        if self._database is not None:
            self._database.close()
            self._database = None

    def put(self, item: RaceItem | ServingWindow) -> None:
        """Store one item; when it does not fit, the oldest go.

        Raises:
            StorageFull, Retryable: when the disk is full or the file cannot be used; the item is lost, and counted as
                dropped with the next one stored.
        """
        body = encode(_Item(item), MAX_INFLATED_BYTES)
        if len(body) > _MAX_BATCH_RAW_BYTES:
            raise TooLarge(f"a telemetry item of {len(body)} bytes is over the limit of {_MAX_BATCH_RAW_BYTES}")
        try:
            with self._using() as database:
                self._make_room(database, len(body))
                database.execute("INSERT INTO items (size_bytes, body) VALUES (?, ?)", (len(body), body))
        except Retryable:
            self._lost += 1
            raise
        self._lost = 0
        self._size_bytes += len(body)

    def lose(self) -> None:
        """Count an item as lost that nobody tried to store."""
        self._lost += 1

    def waiting(self) -> int:
        """Return how many items are not acknowledged yet."""
        with self._using() as database:
            return int(database.execute("SELECT COUNT(*) FROM items").fetchone()[0])

    def unsent(self) -> int:
        """Return how many items are in no batch yet."""
        with self._using() as database:
            return int(database.execute("SELECT COUNT(*) FROM items WHERE batch IS NULL").fetchone()[0])

    def batches(self) -> list[str]:
        """Return the batches that were made and not acknowledged, oldest first."""
        grouped = "SELECT batch FROM items WHERE batch IS NOT NULL GROUP BY batch ORDER BY MIN(id)"
        with self._using() as database:
            return [str(row[0]) for row in database.execute(grouped)]

    def new_batch(self) -> str | None:
        """Put the oldest free items into a new batch and return its id; None when there are none."""
        chosen: list[int] = []
        size = 0
        free = "SELECT id, size_bytes FROM items WHERE batch IS NULL ORDER BY id LIMIT ?"
        with self._using() as database:
            for row_id, size_bytes in database.execute(free, (MAX_BATCH_ITEMS,)).fetchall():
                if chosen and size + size_bytes > _MAX_BATCH_RAW_BYTES:
                    break
                chosen.append(row_id)
                size += size_bytes
        return self._bind(chosen) if chosen else None

    def payload(self, batch: str) -> bytes | None:
        """Return the batch as it travels; None when it is gone, or was split because it was too large to travel."""
        with self._using() as database:
            rows = database.execute("SELECT id, body FROM items WHERE batch = ? ORDER BY id", (batch,)).fetchall()
            dropped = database.execute("SELECT dropped FROM batches WHERE id = ?", (batch,)).fetchone()
        items: list[RaceItem | ServingWindow | OtherItem] = []
        for row_id, body in rows:
            try:
                items.append(_Item.model_validate_json(body).root)
            except ValueError as err:  # pydantic's ValidationError: an item of another version of the agent
                logger.error("event=telemetry_unreadable item=%d error=%s", row_id, err)
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
        with self._using() as database:
            database.execute("DELETE FROM items WHERE batch = ?", (batch,))
            database.execute("DELETE FROM batches WHERE id = ?", (batch,))
            self._size_bytes = _measured(database)

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        """Give the database for one transaction, opened when it is not.

        Raises:
            StorageFull: when the disk is full.
            Retryable: when the file cannot be used now, or was damaged and has been begun anew.
        """
        try:
            database = self._connection()
            with database:
                yield database
        except sqlite3.DatabaseError as err:
            if _is_full(err):
                self.close()  # its pager refuses everything until it is opened anew
                raise StorageFull(f"no space left to keep telemetry in {self._path}: free some and it goes on") from err
            if isinstance(err, sqlite3.OperationalError):  # locked, not to be written or opened, an error of the disk
                self.close()
                raise Retryable(f"{self._path} cannot be used now: {err}") from err
            if self._is_sound():
                raise Retryable(f"{self._path} was misread: {err}") from err
            self._put_aside(err)
            raise Retryable(f"{self._path} was damaged ({err}) and is begun anew") from err

    def _connection(self) -> sqlite3.Connection:
        """Return the database, opened anew where it has to be; a damaged file is put aside for a fresh one."""
        if self._database is None:
            try:
                self._database = self._connect()
            except sqlite3.DatabaseError as err:
                if isinstance(err, sqlite3.OperationalError):
                    raise
                if not self._is_sound():
                    self._put_aside(err)
                self._database = self._connect()
        return self._database

    def _is_sound(self) -> bool:
        """Return whether the file is whole when it is opened anew: SQLite takes an error of reading for damage."""
        self.close()
        try:
            with closing(self._connect()) as database:
                return bool(database.execute("PRAGMA quick_check").fetchone()[0] == "ok")
        except sqlite3.Error:
            return False

    def _connect(self) -> sqlite3.Connection:
        database = sqlite3.connect(self._path, timeout=_BUSY_TIMEOUT_S, check_same_thread=True)
        try:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            database.executescript(_SCHEMA)
            self._size_bytes = _measured(database)
        except sqlite3.Error:
            database.close()
            raise
        return database

    def _put_aside(self, why: sqlite3.DatabaseError) -> None:
        self.close()
        aside = self._path.with_suffix(".damaged")
        logger.error("event=outbox_damaged path=%s error=%s action=put_aside_as %s", self._path, why, aside.name)
        try:
            for suffix in ("-wal", "-shm"):
                self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
            self._path.replace(aside)
        except OSError as err:
            raise Retryable(f"{self._path} is damaged ({why}) and cannot be put aside: {err}") from err

    def _make_room(self, database: sqlite3.Connection, size_bytes: int) -> None:
        dropped = self._lost
        while self._size_bytes + size_bytes > self._max_bytes:
            oldest = database.execute(
                "SELECT id, size_bytes FROM items WHERE batch IS NULL ORDER BY id LIMIT 1"
            ).fetchone()
            if oldest is None:
                break
            database.execute("DELETE FROM items WHERE id = ?", (oldest[0],))
            self._size_bytes -= oldest[1]
            dropped += 1
        if dropped:
            database.execute(
                "INSERT INTO counters VALUES ('dropped', ?) ON CONFLICT (name) DO UPDATE SET value = value + ?",
                (dropped, dropped),
            )

    def _bind(self, chosen: list[int]) -> str:
        batch = self._new_id()
        with self._using() as database:
            row = database.execute("SELECT value FROM counters WHERE name = 'dropped'").fetchone()
            database.execute("INSERT INTO batches VALUES (?, ?)", (batch, int(row[0]) if row else 0))
            database.execute("DELETE FROM counters WHERE name = 'dropped'")
            database.executemany("UPDATE items SET batch = ? WHERE id = ?", [(batch, row_id) for row_id in chosen])
        return batch

    def _split(self, batch: str, ids: list[int]) -> None:
        """Make two batches of one that is too large; a single item that is too large is dropped and counted."""
        with self._using() as database:
            if len(ids) == 1:
                logger.error("event=telemetry_dropped reason=too_large batch=%s", batch)
                database.execute("DELETE FROM items WHERE id = ?", (ids[0],))
                database.execute(
                    "INSERT INTO counters VALUES ('dropped', 1) ON CONFLICT (name) DO UPDATE SET value = value + 1"
                )
                database.execute("DELETE FROM batches WHERE id = ?", (batch,))
                return
            second = self._new_id()
            database.execute("INSERT INTO batches VALUES (?, 0)", (second,))
            half = ids[len(ids) // 2 :]
            database.executemany("UPDATE items SET batch = ? WHERE id = ?", [(second, row_id) for row_id in half])


def _measured(database: sqlite3.Connection) -> int:
    return int(database.execute("SELECT COALESCE(SUM(size_bytes), 0) FROM items").fetchone()[0])


def _is_full(err: sqlite3.DatabaseError) -> bool:
    return getattr(err, "sqlite_errorname", "") == "SQLITE_FULL" or "disk is full" in str(err)
