"""Pulling outputs of batch jobs from devices: asked for by the operator, carried in assignments, followed to the end.

An output is asked for in its device's signed assignment until it is here, or the device refuses, or the operator
withdraws it. How much of it is here is in the database once the bytes are on the disk (receiving.py). Every function
works inside the caller's transaction.
"""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import Connection

from regatta_fleet.database import batch, devices
from regatta_fleet.database.batch import BatchRow, Pulled
from regatta_fleet.database.events import add_event
from regatta_fleet.errors import Conflict, NotFound
from regatta_fleet.figures import counted, size
from regatta_fleet.schemas import ResultsRequest
from regatta_protocol.batch import MAX_RESULTS_WANTED, BatchState, ResultsState
from regatta_protocol.errors import TooLarge
from regatta_protocol.ids import DeviceId, Digest
from regatta_protocol.messages import Reported

__all__ = [
    "ask_results",
    "forget_results",
    "note_offered",
    "note_received",
    "note_reported",
    "note_revoked",
    "note_whole",
    "withdraw",
]

_UNHEARD = "waiting: the device has not said yet that it knows of it"


def ask_results(tx: Connection, identifier: str, request: ResultsRequest, now: float) -> set[DeviceId]:
    """Ask the devices of a batch for their outputs; return those whose assignment changed by that.

    What is here already, or on its way, is left as it is; what was refused or withdrawn is asked for anew.

    Raises:
        NotFound: when there is no such batch, or it is on no such device.
        Conflict: when a device has as many outputs to send as it may.
    """
    rows = {row.device: row for row in batch.list_jobs(tx, identifier=identifier)}
    if not rows:
        raise NotFound(f"there is no batch {identifier[:80]!r}: see `regatta batch list`")
    strangers = sorted(set(request.on) - set(rows))
    if strangers:
        named = ", ".join(strangers[:5])
        raise NotFound(f"batch {identifier} is not on {named}: see `regatta batch show {identifier}`")
    chosen = [row for device, row in rows.items() if not request.on or device in request.on]
    changed = set()
    for row in chosen:
        if row.report.state is not BatchState.DONE or (row.results is not None and _is_settled(row.results)):
            continue
        has_bytes = row.report.summary.output_bytes if row.report.summary is not None else 0
        if has_bytes > request.max_bytes:
            why = f"its output has {size(has_bytes)}, over the {size(request.max_bytes)} that were asked for"
            refused = Pulled(state=ResultsState.REFUSED, max_bytes=request.max_bytes, generation=0, reason=why)
            _save(tx, row, refused, now)
            continue
        if len(batch.list_results_wanted(tx, row.device)) >= MAX_RESULTS_WANTED:
            raise Conflict(f"{row.device} has {MAX_RESULTS_WANTED} outputs to send: wait for one, or cancel it")
        wanted = Pulled(
            state=ResultsState.WANTED,
            max_bytes=request.max_bytes,
            generation=_next_generation(tx, row.device, now),
            reason=_UNHEARD,
        )
        _save(tx, row, wanted, now)
        changed.add(row.device)
    if changed:
        add_event(tx, now, "results_asked", f"outputs of batch {identifier} from {counted(len(changed), 'device')}")
    return changed


def withdraw(tx: Connection, identifier: str, now: float, why: str = "cancelled by the operator") -> set[DeviceId]:
    """Ask for no output of a batch any more; return the devices that were asked."""
    changed = set()
    for row in batch.list_jobs(tx, identifier=identifier):
        if row.results is not None and row.results.is_open:
            generation = _next_generation(tx, row.device, now)
            ended = {"state": ResultsState.CANCELLED, "reason": why, "generation": generation}
            _save(tx, row, row.results.model_copy(update=ended), now)
            changed.add(row.device)
    return changed


def forget_results(tx: Connection, identifier: str, now: float) -> set[DeviceId]:
    """Have no output of a batch here or on its way; return the devices whose assignment changed by that."""
    if not batch.list_jobs(tx, identifier=identifier):
        raise NotFound(f"there is no batch {identifier[:80]!r}: see `regatta batch list`")
    changed = withdraw(tx, identifier, now)
    for row in batch.list_jobs(tx, identifier=identifier):
        batch.save_job(tx, replace(row, results=None))
    return changed


def note_offered(
    tx: Connection, identifier: str, device: DeviceId, size_bytes: int, digest: Digest, now: float
) -> Pulled:
    """Store what a device offers to send; return how it stands.

    Raises:
        NotFound: when nobody asked for it (any more).
        TooLarge: when it is longer than was asked for.
    """
    row, pulled = _asked(tx, identifier, device)
    if size_bytes > pulled.max_bytes:
        raise TooLarge(f"the output of {identifier} has {size_bytes} bytes, over the {pulled.max_bytes} asked for")
    same = (pulled.size_bytes, pulled.digest) == (size_bytes, digest)
    offered = {
        "state": ResultsState.SENDING,
        "reason": None,
        "size_bytes": size_bytes,
        "digest": digest,
        "received_bytes": pulled.received_bytes if same else 0,
    }
    after = pulled.model_copy(update=offered)
    _save(tx, row, after, now)
    return after


def note_received(tx: Connection, identifier: str, device: DeviceId, received_bytes: int, now: float) -> None:
    """Store how much is on the disk.

    Raises:
        NotFound: when nobody asks for it any more.
    """
    row, pulled = _asked(tx, identifier, device)
    _save(tx, row, pulled.model_copy(update={"received_bytes": received_bytes}), now)


def note_whole(tx: Connection, identifier: str, device: DeviceId, now: float) -> None:
    """Store that all of it is on the disk with its digest; its device is asked for it no more.

    Raises:
        NotFound: when nobody asks for it any more.
    """
    row, pulled = _asked(tx, identifier, device)
    whole = {
        "state": ResultsState.HERE,
        "received_bytes": pulled.size_bytes,
        "generation": _next_generation(tx, device, now),
    }
    _save(tx, row, pulled.model_copy(update=whole), now)
    add_event(tx, now, "results_here", f"the output of batch {identifier}: {size(pulled.size_bytes)}", device=device)


def note_reported(tx: Connection, reported: Reported, now: float) -> bool:
    """Store what a device says of outputs that it shall send; return whether its assignment has changed by that."""
    refused = False
    said = {report.id: report for report in reported.results or ()}
    for row in batch.list_jobs(tx, device=reported.device, only_pulled=True):
        pulled = row.results
        if pulled is None or not pulled.is_open or reported.generation < pulled.generation:
            continue
        told = said.get(row.job.id)
        if reported.results is None:
            why = f"waiting: its agent {reported.agent_version} sends no results: update it"
            after = pulled.model_copy(update={"reason": why})
        elif told is None:
            continue
        elif told.state is ResultsState.REFUSED:
            ended = {"generation": _next_generation(tx, reported.device, now), "state": ResultsState.REFUSED}
            after = pulled.model_copy(update={**ended, "reason": told.reason})
            add_event(tx, now, "results_refused", f"batch {row.job.id}: {told.reason}", device=row.device)
            refused = True
        else:
            after = pulled.model_copy(update={"reason": told.reason})
        if after != pulled:
            _save(tx, row, after, now)
    return refused


def note_revoked(tx: Connection, device: DeviceId, now: float) -> None:
    """Wait for no output of a device that was revoked."""
    for row in batch.list_jobs(tx, device=device, only_pulled=True):
        if row.results is not None:
            ended = {"state": ResultsState.CANCELLED, "reason": "the device was revoked"}
            _save(tx, row, row.results.model_copy(update=ended), now)


def _is_settled(pulled: Pulled) -> bool:
    return pulled.is_open or pulled.state is ResultsState.HERE


def _asked(tx: Connection, identifier: str, device: DeviceId) -> tuple[BatchRow, Pulled]:
    row = batch.get_job(tx, identifier, device)
    if row is None or row.results is None or not row.results.is_open:
        raise NotFound(f"nobody asks {device} for the output of batch {identifier[:64]!r} (any more)")
    return row, row.results


def _save(tx: Connection, row: BatchRow, pulled: Pulled, now: float) -> None:
    batch.save_job(tx, replace(row, results=pulled, updated_at=now))


def _next_generation(tx: Connection, device: DeviceId, now: float) -> int:
    devices.bump_generation(tx, device, now)
    wanted = devices.get_device(tx, device)
    return 0 if wanted is None else wanted.desired_generation
