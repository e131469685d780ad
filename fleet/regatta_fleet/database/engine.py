"""Opening the database: SQLite with the settings that survive a power cut, or another by its URL; migrations first.

On SQLite a write transaction takes the write lock at its start (BEGIN IMMEDIATE), so that it waits instead of
failing half-way, and every commit is synced (synchronous=FULL): a generation that was published must never be
given out again after a power cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError
from sqlalchemy.pool import StaticPool

from regatta_protocol.errors import Misuse, Retryable, StorageFull

__all__ = ["Database", "open_database", "sqlite_url"]

_BUSY_TIMEOUT_MS = 10_000  # our longest transaction (a wave of 10,000 devices) is far below
_WRITING = "regatta_writing"
_MIGRATIONS = Path(__file__).parent / "migrations"


class Database:
    """Short transactions over one engine. Safe to use from several threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._writer = engine.execution_options(**{_WRITING: True})

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Yield a connection that sees one moment of the database."""
        with _errors_translated(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Yield a connection whose changes are committed together when the block ends well.

        Raises:
            StorageFull: when the disk is full; nothing is changed.
            Retryable: when the database cannot be reached, or is locked for too long; nothing is changed.
        """
        with _errors_translated(), self._writer.begin() as connection:
            yield connection

    def close(self) -> None:
        """Give all connections back."""
        self._engine.dispose()


def sqlite_url(path: Path) -> str:
    """Return the URL of an SQLite file."""
    return f"sqlite:///{path}"


def open_database(url: str) -> Database:
    """Return the database at `url`, brought to this program's tables.

    Raises:
        Misuse: when the URL is none, its driver is missing, or the database is of a newer Regatta.
        Retryable: when it cannot be reached.
    """
    try:
        engine = _create(url)
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as err:
        raise Misuse(f"the database cannot be used: {err}; give an SQLAlchemy URL and install its driver") from err
    with _errors_translated():
        _migrate(engine)
    return Database(engine)


def _create(url: str) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return create_engine(parsed, pool_pre_ping=True)
    options: dict[str, Any] = {}
    if parsed.database in (None, "", ":memory:"):  # one connection, else every thread has a database of its own
        options = {"poolclass": StaticPool, "connect_args": {"check_same_thread": False}}
    engine = create_engine(parsed, **options)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: object) -> None:  # noqa: ANN401  # the driver's own type
    connection.isolation_level = None  # we say BEGIN ourselves, in _begin_sqlite
    cursor = connection.cursor()
    for pragma in (
        f"busy_timeout={_BUSY_TIMEOUT_MS}",
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        "journal_size_limit=16777216",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    writing = connection.get_execution_options().get(_WRITING, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")


def _migrate(engine: Engine) -> None:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    with engine.execution_options(**{_WRITING: True}).begin() as connection:
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except Exception as err:
            if "Can't locate revision" in str(err):
                raise Misuse(f"the database was made by a newer Regatta ({err}): run that version") from err
            raise


@contextmanager
def _errors_translated() -> Iterator[None]:
    try:
        yield
    except OperationalError as err:
        text = str(err.orig)
        if "full" in text or "No space left" in text:
            raise StorageFull(f"the database's disk is full ({text}): free some space and it goes on") from err
        raise Retryable(f"the database does not answer ({text}): it is tried again") from err
