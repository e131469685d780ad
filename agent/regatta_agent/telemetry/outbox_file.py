"""The SQLite file of the outbox: opened when it is used, and opened again, or begun anew, when it could not be.

Telemetry never stops the agent. A damaged file is put aside and begun anew; one that cannot be used now (a full disk,
a folder that takes nothing, no descriptor left) is opened again at the next use. SQLite takes some errors of reading
for damage, so a file is only put aside when it is still damaged after it was opened anew.

Not here: what is kept, and which of it goes when there is no room (outbox.py).
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from regatta_protocol.errors import Retryable, StorageFull

__all__ = ["OutboxFile", "counter"]

logger = logging.getLogger(__name__)

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


def counter(database: sqlite3.Connection, name: str) -> int:
    """Return a number that the file keeps; 0 when it was never counted."""
    row = database.execute("SELECT value FROM counters WHERE name = ?", (name,)).fetchone()
    return int(row[0]) if row is not None else 0


class OutboxFile:
    """One file, and the time that agents have run on it. Used by one thread."""

    def __init__(self, path: Path, monotonic: Callable[[], float]) -> None:
        self._path = path
        self._monotonic = monotonic
        self._database: sqlite3.Connection | None = None
        self._ran_before_s = 0.0  # what agents had run on this file when it was opened, less what the clock said then

    @property
    def is_open(self) -> bool:
        """Whether the file could be opened when it was used last."""
        return self._database is not None

    def ran_s(self) -> float:
        """Return how long agents have run on this file, as far as was stored."""
        return self._ran_before_s + self._monotonic()

    def close(self) -> None:
        """Close the file. May be called twice."""
        if self._database is not None:
            self._database.close()
            self._database = None

    @contextmanager
    def using(self) -> Iterator[sqlite3.Connection]:
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
            self._ran_before_s = counter(database, "ran_s") - self._monotonic()
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


def _is_full(err: sqlite3.DatabaseError) -> bool:
    return getattr(err, "sqlite_errorname", "") == "SQLITE_FULL" or "disk is full" in str(err)
