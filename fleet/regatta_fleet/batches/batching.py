"""Batch jobs: started and cancelled by the operator, carried in assignments, and followed by what devices report.

A job is part of its device's signed assignment until it has ended or was cancelled. The assignment without it tells the
device that its end was heard of. Every function works inside the caller's transaction; those that change something
belong to the controller's thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import Connection

from regatta_fleet.batches import pulling
from regatta_fleet.core.cohorts import resolve
from regatta_fleet.database import batch, devices, models
from regatta_fleet.database.batch import BatchRow
from regatta_fleet.database.events import add_event
from regatta_fleet.errors import Conflict, NotFound
from regatta_fleet.figures import counted
from regatta_fleet.schemas import BatchDetail, BatchOnDevice, BatchRequest, ResultsOnDevice
from regatta_protocol.batch import MAX_BATCH_JOBS, BatchJob, BatchReport, BatchState
from regatta_protocol.ids import DeviceId
from regatta_protocol.messages import Reported

__all__ = ["cancel_batch", "describe", "list_batches", "note_reported", "note_revoked", "start_batch"]

_KEPT_S = 90 * 86_400.0  # ended jobs, since they were last heard of
_LISTED = 100
_UNHEARD = "waiting: the device has not said yet that it knows of it"
_WITHDRAWN = "cancelled: the device has not said yet that it stopped"


def start_batch(tx: Connection, identifier: str, request: BatchRequest, now: float) -> set[DeviceId]:
    """Give the job to every device that the request names; return them.

    Raises:
        NotFound: when no such model is in the registry.
        Rejected: when the request names no device.
        Conflict: when a device has as many jobs as it may.
    """
    if models.latest_version(tx, request.model) == 0:
        raise NotFound(f"there is no model {request.model!r}: see `regatta model list`")
    cohort = resolve(request.on, devices.list_members(tx))
    job = BatchJob(
        id=identifier,
        model=request.model,
        input=request.input,
        output=request.output or f"{identifier}.{request.format}",
        limit=request.limit,
    )
    batch.forget_ended(tx, now - _KEPT_S)
    for device in cohort:
        if len(batch.list_wanted(tx, device)) >= MAX_BATCH_JOBS:
            raise Conflict(f"{device} has {MAX_BATCH_JOBS} jobs that have not ended: cancel one, or wait for it")
        report = BatchReport(id=identifier, state=BatchState.QUEUED, reason=_UNHEARD)
        generation = _next_generation(tx, device, now)
        batch.add_job(tx, BatchRow(job, device, now, generation, False, report, now))
    where = counted(len(cohort), "device")
    add_event(tx, now, "batch_started", f"batch {identifier}: {job.model} over {job.input} on {where}")
    return set(cohort)


def cancel_batch(tx: Connection, identifier: str, now: float) -> set[DeviceId]:
    """Withdraw the batch from every device that has not ended it, and the pulling of its outputs; return the devices.

    Raises:
        NotFound: when there is none of that id.
        Conflict: when it has ended, or was cancelled already.
    """
    left = [row for row in _rows(tx, identifier) if row.is_open and not row.withdrawn]
    unasked = pulling.withdraw(tx, identifier, now)
    if not left and not unasked:
        raise Conflict(f"batch {identifier} has ended or was cancelled on every device")
    for row in left:
        told = row.report.model_copy(update={"reason": _WITHDRAWN})
        generation = _next_generation(tx, row.device, now)
        batch.save_job(tx, replace(row, generation=generation, withdrawn=True, report=told, updated_at=now))
    changed = {row.device for row in left} | unasked
    add_event(tx, now, "batch_cancelled", f"batch {identifier} on {counted(len(changed), 'device')}")
    return changed


def note_reported(tx: Connection, reported: Reported, now: float) -> bool:
    """Store what a device says of its jobs; return whether its assignment has changed by that, as an end does."""
    ended = False
    said = {report.id: report for report in reported.batch or ()}
    for row in batch.list_jobs(tx, device=reported.device, only_open=True):
        told = said.get(row.job.id) or _silent(row, reported)
        if told is None:
            continue
        if row.withdrawn and told.state in (BatchState.QUEUED, BatchState.RUNNING):
            told = told.model_copy(update={"reason": _WITHDRAWN})
        if told == row.report:
            continue
        after = replace(row, report=told, updated_at=now)
        batch.save_job(tx, after)
        if not after.is_open:
            ended = ended or not row.withdrawn
            add_event(tx, now, f"batch_{told.state}", _words(after), device=row.device)
    if ended:
        devices.bump_generation(tx, reported.device, now)
    return pulling.note_reported(tx, reported, now) or ended


def note_revoked(tx: Connection, device: DeviceId, now: float) -> None:
    """End the jobs of a device that was revoked, and the pulling of its outputs: it is not heard any more."""
    pulling.note_revoked(tx, device, now)
    for row in batch.list_jobs(tx, device=device, only_open=True):
        told = row.report.model_copy(update={"state": BatchState.CANCELLED, "reason": "the device was revoked"})
        batch.save_job(tx, replace(row, withdrawn=True, report=told, updated_at=now))


def describe(tx: Connection, identifier: str) -> BatchDetail:
    """Return a batch as the API shows it.

    Raises:
        NotFound: when there is none of that id.
    """
    return _described(_rows(tx, identifier))


def list_batches(tx: Connection, limit: int = _LISTED) -> tuple[BatchDetail, ...]:
    """Return the newest batches, newest first."""
    return tuple(describe(tx, identifier) for identifier in batch.newest(tx, limit))


def _rows(tx: Connection, identifier: str) -> tuple[BatchRow, ...]:
    rows = batch.list_jobs(tx, identifier=identifier)
    if not rows:
        raise NotFound(f"there is no batch {identifier[:80]!r}: see `regatta batch list`")
    return rows


def _next_generation(tx: Connection, device: DeviceId, now: float) -> int:
    devices.bump_generation(tx, device, now)
    wanted = devices.get_device(tx, device)
    return 0 if wanted is None else wanted.desired_generation


def _silent(row: BatchRow, reported: Reported) -> BatchReport | None:
    """Return what follows for a job that a report does not name; None: nothing, the device has older news."""
    if reported.generation < row.generation:
        return None
    if row.withdrawn:
        return row.report.model_copy(update={"state": BatchState.CANCELLED, "reason": "cancelled before it ended"})
    if reported.batch is None:
        why = f"waiting: its agent {reported.agent_version} knows no batch jobs: update it"
        return row.report.model_copy(update={"reason": why})
    return None


def _words(row: BatchRow) -> str:
    report, summary = row.report, row.report.summary
    if summary is None:
        return f"batch {row.job.id} {report.state}: {report.reason or 'no reason given'}"
    refused = f", {summary.refused} of them refused" if summary.refused else ""
    return f"batch {row.job.id} done: {counted(summary.records, 'record')}{refused}, {summary.per_second:.0f} a second"


def _described(rows: Sequence[BatchRow]) -> BatchDetail:
    job = rows[0].job
    on = tuple(
        BatchOnDevice(
            device=row.device,
            state=row.report.state,
            reason=row.report.reason,
            attempt=row.report.attempt,
            records=row.report.records,
            total=row.report.total,
            summary=row.report.summary,
            updated_at=row.updated_at,
            results=None if row.results is None else ResultsOnDevice.model_validate(row.results.model_dump()),
        )
        for row in rows
    )
    return BatchDetail(
        id=job.id,
        model=job.model,
        input=job.input,
        output=job.output,
        limit=job.limit,
        created_at=rows[0].created_at,
        devices=on,
    )
