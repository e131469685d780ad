"""Telemetry that waits for the broker, in SQLite: stored before it is sent, deleted when the broker has it.

Invariants:
- An item belongs to at most one batch. A batch keeps its id and its items until it is acknowledged, over restarts,
  so the server can count a repeated one once.
- The items are bounded by bytes. When there is no room the oldest windows of a placement are merged, which loses no
  sum (core/thinning.py); only when nothing can be merged the oldest items go, or the new one where all are in batches.
- They are bounded by age, counted in time that the agent ran: a clock that jumps by years ages nothing.
- How many were merged and how many are lost is kept, and the server is told of the lost ones in the next batch.
- Telemetry never stops the agent. A damaged file is put aside and begun anew; one that cannot be used now (a full disk,
  a folder that takes nothing, no descriptor left) is opened again at the next use, and what was lost is counted.
"""

from __future__ import annotations

import logging
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from regatta_agent.telemetry_batches import MAX_BATCH_ITEMS, Chosen, choose, encode_item, merge, read_item, series_of
from regatta_protocol.codec import encode_zlib
from regatta_protocol.errors import Retryable, StorageFull, TooLarge
from regatta_protocol.ids import DeviceId
from regatta_protocol.messages import OtherItem, RaceItem, TelemetryBatch
from regatta_protocol.values import ServingWindow

__all__ = ["MAX_BATCH_ITEMS", "Outbox"]

logger = logging.getLogger(__name__)

_MAX_LOOKED_AT = 600  # items, for a batch or for what can be merged
_BUSY_TIMEOUT_S = 5.0

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
        self._new_id = new_id
        self._database: sqlite3.Connection | None = None
        self._max_age_s = max_age_s
        self._monotonic = monotonic
        self._ran_before_s = 0.0  # what agents had run on this file when it was opened, less what the clock said then
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
        """Store one item; when it does not fit, the oldest are merged, and at last go.

        Raises:
            StorageFull, Retryable: when the disk is full or the file cannot be used; the item is lost, and counted as
                dropped with the next one stored.
            TooLarge: when it could never travel.
        """
        body = encode_item(item)
        try:
            with self._using() as database:
                _count_dropped(database, self._lost)
                self._expire(database)
                if self._make_room(database, len(body)):
                    database.execute(
                        "INSERT INTO items (size_bytes, body, series, ran_s) VALUES (?, ?, ?, ?)",
                        (len(body), body, series_of(item), self._ran_s()),
                    )
                database.execute("INSERT OR REPLACE INTO counters VALUES ('ran_s', ?)", (int(self._ran_s()),))
        except Retryable:
            self._lost += 1
            raise
        self._lost = 0

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
        """Put the oldest free items into a new batch and return its id; None when there are none.

        Windows of one placement travel as one: what waited for long is not sent in as many pieces as it came in.
        """
        free = "SELECT id, series, body FROM items WHERE batch IS NULL ORDER BY id LIMIT ?"
        if self.unsent() == 0:
            return None
        with self._using() as database:
            self._expire(database)
            chosen = choose(database.execute(free, (_MAX_LOOKED_AT,)).fetchall())
            return self._bind(database, chosen) if chosen else None

    def payload(self, batch: str) -> bytes | None:
        """Return the batch as it travels; None when it is gone, or was split because it was too large to travel."""
        with self._using() as database:
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
        with self._using() as database:
            database.execute("DELETE FROM items WHERE batch = ?", (batch,))
            database.execute("DELETE FROM batches WHERE id = ?", (batch,))

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
        except (sqlite3.IntegrityError, sqlite3.ProgrammingError):  # a bug of ours, and no damage
            raise
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
            database.execute("PRAGMA wal_autocheckpoint = 128")  # pages, of 1000: half a megabyte of disk instead of 4
            database.execute("PRAGMA cache_size = -256")  # KiB, of 2 MB: this process shall be small
            database.executescript(_SCHEMA)
            present = {row[1] for row in database.execute("PRAGMA table_info(items)")}
            for name, kind in _ADDED_COLUMNS.items():
                if name not in present:
                    database.execute(f"ALTER TABLE items ADD COLUMN {name} {kind}")
            self._ran_before_s = _counter(database, "ran_s") - self._monotonic()
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

    def _ran_s(self) -> float:
        """Return how long agents have run on this file, as far as was stored."""
        return self._ran_before_s + self._monotonic()

    def _expire(self, database: sqlite3.Connection) -> None:
        oldest_s = self._ran_s() - self._max_age_s
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
        database.execute("INSERT INTO batches VALUES (?, ?)", (batch, _counter(database, "dropped")))
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
        with self._using() as database:
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


def _counter(database: sqlite3.Connection, name: str) -> int:
    row = database.execute("SELECT value FROM counters WHERE name = ?", (name,)).fetchone()
    return int(row[0]) if row is not None else 0


def _count_dropped(database: sqlite3.Connection, more: int) -> None:
    """Count what is lost, twice: until the server is told, and for ever."""
    if more > 0:
        database.execute(_COUNT, ("dropped", more))
        database.execute(_COUNT, ("dropped_ever", more))


def _measured(database: sqlite3.Connection) -> int:
    return int(database.execute("SELECT COALESCE(SUM(size_bytes), 0) FROM items").fetchone()[0])


def _is_full(err: sqlite3.DatabaseError) -> bool:
    return getattr(err, "sqlite_errorname", "") == "SQLITE_FULL" or "disk is full" in str(err)
