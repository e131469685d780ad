"""Update windows of groups: what is set, for whom, and which hold for a device."""

from __future__ import annotations

import json

from sqlalchemy import Connection, delete, insert, select

from regatta_fleet.core.policies import EVERYONE
from regatta_fleet.database.tables import update_windows

__all__ = ["delete_windows", "list_windows", "put_windows", "windows_for"]


def list_windows(tx: Connection) -> dict[str, tuple[str, ...]]:
    """Return the windows that are set, as they are written, by group."""
    rows = tx.execute(select(update_windows).order_by(update_windows.c.group_name))
    return {row.group_name: tuple(json.loads(row.windows)) for row in rows}


def windows_for(tx: Connection, group: str) -> tuple[str, ...]:
    """Return the windows of a device of the group: the group's, else those of all devices."""
    found = list_windows(tx)
    return found.get(group, found.get(EVERYONE, ()))


def put_windows(tx: Connection, group: str, windows: tuple[str, ...], now: float) -> None:
    """Store a group's windows in place of those before."""
    delete_windows(tx, group)
    tx.execute(insert(update_windows).values(group_name=group, windows=json.dumps(windows), updated_at=now))


def delete_windows(tx: Connection, group: str) -> bool:
    """Take a group's windows away; return whether there were any."""
    return tx.execute(delete(update_windows).where(update_windows.c.group_name == group)).rowcount > 0
