"""The fleet's history: lines for people, the newest MAX_EVENTS of them."""

from __future__ import annotations

from sqlalchemy import Connection, delete, insert, select

from regatta_fleet.database.tables import events
from regatta_fleet.schemas import FleetEvent
from regatta_protocol.ids import DeviceId

__all__ = ["MAX_EVENTS", "add_event", "list_events"]

MAX_EVENTS = 10_000  # some 2 MB
_PRUNE_EVERY = 100


def add_event(
    tx: Connection, at: float, kind: str, text: str, *, device: DeviceId | None = None, rollout: str | None = None
) -> None:
    """Add a line, and now and then remove the oldest over the limit."""
    result = tx.execute(insert(events).values(at=at, kind=kind, text=text[:2000], device=device, rollout=rollout))
    row = int(result.inserted_primary_key[0]) if result.inserted_primary_key else 0
    if row % _PRUNE_EVERY == 0:
        tx.execute(delete(events).where(events.c.id <= row - MAX_EVENTS))


def list_events(tx: Connection, *, since: float | None = None, limit: int = 200) -> tuple[FleetEvent, ...]:
    """Return lines, oldest first: the first `limit` after `since`, or, without it, the newest `limit`."""
    columns = (events.c.at, events.c.kind, events.c.text, events.c.device, events.c.rollout)
    if since is None:
        rows = tx.execute(select(*columns).order_by(events.c.id.desc()).limit(limit)).all()[::-1]
    else:
        rows = list(tx.execute(select(*columns).where(events.c.at >= since).order_by(events.c.id).limit(limit)).all())
    return tuple(
        FleetEvent(at=row.at, kind=row.kind, text=row.text, device=row.device, rollout=row.rollout) for row in rows
    )
