"""Results of races by their key, which devices of a kind share: the newest of each device, and which one answers.

A device's word is not checked here and need not be: who is answered confirms it on its own board before it places
anything (docs/reuse.md). Revoked devices are not heard any more.
"""

from __future__ import annotations

from collections import Counter

from sqlalchemy import Connection, delete, insert, select

from regatta_fleet.database.tables import devices, race_results
from regatta_protocol.codec import decode, encode
from regatta_protocol.ids import DeviceId, Digest
from regatta_protocol.measurement import PriorRace, RaceReport
from regatta_protocol.messages import RaceItem

__all__ = ["RESULTS_KEPT", "find_result", "note_race"]

RESULTS_KEPT = 64  # of each device, as many as an agent keeps itself
_MAX_REPORT_BYTES = 1024 * 1024
_EVIDENCE = ("full", "confirmed")
_MAX_PLACEMENT = 256  # of tables.py; no candidate's id is longer


def note_race(tx: Connection, device: DeviceId, item: RaceItem, now: float) -> None:
    """Store what a race or confirmation says about its key.

    One that placed nothing, has no key, or rests on what only a newer agent knows, says nothing.

    A full race is a result; a confirmation is a voice for the placement that it confirmed.
    """
    report = item.report
    key = report.key
    if key is None or report.placement is None or report.basis not in _EVIDENCE:
        return
    mine = (race_results.c.key == key) & (race_results.c.device == device)
    placement, text = report.placement[:_MAX_PLACEMENT], None
    if report.basis == "full":
        text = encode(report, _MAX_REPORT_BYTES).decode()
    elif report.prior is not None:
        placement = report.prior.placement[:_MAX_PLACEMENT]
        known = tx.execute(select(race_results).where(mine)).one_or_none()
        if known is not None and known.report is not None and known.placement == placement:
            return
    tx.execute(delete(race_results).where(mine))
    tx.execute(
        insert(race_results).values(
            key=key, device=device, at=item.at, received_at=now, placement=placement, report=text
        )
    )
    _prune(tx, device)


def find_result(tx: Connection, key: Digest) -> PriorRace | None:
    """Return the newest full race with this key whose placement most devices found; confirmations break a tie.

    A full race counts for more than any number of confirmations: it looked at every candidate, and what a first wrong
    result left out is found by full races alone.
    """
    query = (
        select(race_results)
        .join(devices, devices.c.id == race_results.c.device)
        .where(race_results.c.key == key, devices.c.revoked_at.is_(None))
    )
    rows = tx.execute(query).all()
    full = [row for row in rows if row.report is not None]
    found = Counter(row.placement for row in full)
    confirmed = Counter(row.placement for row in rows if row.report is None)
    best = max(
        full,
        key=lambda row: (found[row.placement], confirmed[row.placement], row.received_at, row.device),
        default=None,
    )
    if best is None:
        return None
    report = decode(RaceReport, best.report.encode(), _MAX_REPORT_BYTES)
    return PriorRace(device=best.device, at=best.at, report=report)


def _prune(tx: Connection, device: DeviceId) -> None:
    newest = (
        select(race_results.c.key)
        .where(race_results.c.device == device)
        .order_by(race_results.c.received_at.desc(), race_results.c.key)
        .limit(RESULTS_KEPT)
    )
    kept = tx.execute(newest).scalars().all()
    tx.execute(delete(race_results).where(race_results.c.device == device, race_results.c.key.not_in(kept)))
