"""How much telemetry waits, for `regatta-agent status`: read from the outbox's file while the agent has it open."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Backlog", "read_backlog"]

_TIMEOUT_S = 1.0


@dataclass(frozen=True)
class Backlog:
    """What waits, and what became of what did not fit, since the file was begun."""

    items: int
    size_bytes: int
    thinned: int  # windows that were merged into others for want of room
    dropped: int  # items that are lost: no room, too old, too large, or the disk was full


def read_backlog(path: Path) -> Backlog | None:
    """Return what waits; None when there is no such file, or it cannot be read now."""
    try:
        database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=_TIMEOUT_S)
        try:
            items, size_bytes = database.execute("SELECT COUNT(*), COALESCE(SUM(size_bytes), 0) FROM items").fetchone()
            counters = dict(database.execute("SELECT name, value FROM counters").fetchall())
        finally:
            database.close()
    except sqlite3.Error:
        return None
    return Backlog(items, size_bytes, counters.get("thinned", 0), counters.get("dropped_ever", 0))
