"""Batch jobs on devices: a row for each device of a batch, from its start to its end."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, Row, delete, insert, select, update

from regatta_fleet.database.tables import batch_jobs
from regatta_protocol.batch import BatchJob, BatchReport, BatchState, ResultsState, ResultsWanted
from regatta_protocol.codec import decode, encode
from regatta_protocol.ids import DeviceId, DigestField
from regatta_protocol.wire import Wire

__all__ = [
    "BatchRow",
    "Pulled",
    "add_job",
    "forget_ended",
    "get_job",
    "list_ids",
    "list_jobs",
    "list_results_wanted",
    "list_wanted",
    "newest",
    "save_job",
]

_MAX_TEXT_BYTES = 64 * 1024
_ENDED = (str(BatchState.DONE), str(BatchState.FAILED), str(BatchState.CANCELLED))  # a newer agent's word is no end
_PULLING = (str(ResultsState.WANTED), str(ResultsState.SENDING))


class Pulled(Wire):
    """How the pulling of one device's output stands."""

    state: ResultsState
    max_bytes: int
    generation: int  # of the assignment that last changed it
    reason: str | None = None
    size_bytes: int | None = None  # None: the device has not offered it yet
    received_bytes: int = 0
    digest: DigestField | None = None  # as offered; once it is here, of what is here

    @property
    def is_open(self) -> bool:
        """Whether the device's assignment asks for it."""
        return self.state in _PULLING


@dataclass(frozen=True)
class BatchRow:
    """One device's part of a batch."""

    job: BatchJob
    device: DeviceId
    created_at: float
    generation: int  # of the device's assignment that last changed it: it was assigned, or withdrawn
    withdrawn: bool  # the operator cancelled it; the device may not know yet
    report: BatchReport  # as last told, or as the server has it
    updated_at: float
    results: Pulled | None = None  # None: nobody asked for its output

    @property
    def is_open(self) -> bool:
        """Whether the device may still do something about it."""
        return self.report.state not in _ENDED


def add_job(tx: Connection, row: BatchRow) -> None:
    """Store a new job of a device."""
    tx.execute(
        insert(batch_jobs).values(
            id=row.job.id,
            device=row.device,
            job=encode(row.job).decode(),
            created_at=row.created_at,
            **_changing(row),
        )
    )


def save_job(tx: Connection, row: BatchRow) -> None:
    """Store how a job stands now."""
    where = (batch_jobs.c.id == row.job.id) & (batch_jobs.c.device == row.device)
    tx.execute(update(batch_jobs).where(where).values(**_changing(row)))


def list_jobs(
    tx: Connection,
    *,
    identifier: str | None = None,
    device: DeviceId | None = None,
    only_open: bool = False,
    only_pulled: bool = False,
) -> tuple[BatchRow, ...]:
    """Return jobs, oldest first, those of one batch by device."""
    query = select(batch_jobs).order_by(batch_jobs.c.created_at, batch_jobs.c.id, batch_jobs.c.device)
    if identifier is not None:
        query = query.where(batch_jobs.c.id == identifier)
    if device is not None:
        query = query.where(batch_jobs.c.device == device)
    if only_open:
        query = query.where(batch_jobs.c.state.not_in(_ENDED))
    if only_pulled:
        query = query.where(batch_jobs.c.results_state.in_(_PULLING))
    return tuple(_row(found) for found in tx.execute(query))


def list_wanted(tx: Connection, device: DeviceId) -> tuple[BatchJob, ...]:
    """Return what the device's assignment asks for: jobs that have not ended and were not cancelled, oldest first."""
    return tuple(row.job for row in list_jobs(tx, device=device, only_open=True) if not row.withdrawn)


def get_job(tx: Connection, identifier: str, device: DeviceId) -> BatchRow | None:
    """Return one device's part of a batch, or None."""
    where = (batch_jobs.c.id == identifier) & (batch_jobs.c.device == device)
    found = tx.execute(select(batch_jobs).where(where)).one_or_none()
    return None if found is None else _row(found)


def list_results_wanted(tx: Connection, device: DeviceId) -> tuple[ResultsWanted, ...]:
    """Return the outputs that the device's assignment asks for, oldest job first."""
    query = select(batch_jobs).where(batch_jobs.c.device == device, batch_jobs.c.results_state.in_(_PULLING))
    rows = (_row(found) for found in tx.execute(query.order_by(batch_jobs.c.created_at, batch_jobs.c.id)))
    return tuple(
        ResultsWanted(job=row.job, max_bytes=row.results.max_bytes, asked=row.results.generation)
        for row in rows
        if row.results is not None
    )


def list_ids(tx: Connection) -> frozenset[str]:
    """Return the ids of all batches."""
    return frozenset(tx.execute(select(batch_jobs.c.id).distinct()).scalars())


def newest(tx: Connection, limit: int) -> tuple[str, ...]:
    """Return the ids of the last batches, newest first."""
    query = select(batch_jobs.c.id, batch_jobs.c.created_at).distinct()
    return tuple(tx.execute(query.order_by(batch_jobs.c.created_at.desc(), batch_jobs.c.id).limit(limit)).scalars())


def forget_ended(tx: Connection, before: float) -> None:
    """Delete jobs that ended before a time."""
    tx.execute(delete(batch_jobs).where(batch_jobs.c.updated_at < before, batch_jobs.c.state.in_(_ENDED)))


def _changing(row: BatchRow) -> dict[str, object]:
    return {
        "generation": row.generation,
        "withdrawn": row.withdrawn,
        "state": str(row.report.state),
        "report": encode(row.report).decode(),
        "updated_at": row.updated_at,
        "results_state": None if row.results is None else str(row.results.state),
        "results": None if row.results is None else encode(row.results).decode(),
    }


def _row(found: Row[tuple[object, ...]]) -> BatchRow:
    return BatchRow(
        job=decode(BatchJob, found.job.encode(), _MAX_TEXT_BYTES),
        device=found.device,
        created_at=found.created_at,
        generation=found.generation,
        withdrawn=bool(found.withdrawn),
        report=decode(BatchReport, found.report.encode(), _MAX_TEXT_BYTES),
        updated_at=found.updated_at,
        results=None if found.results is None else decode(Pulled, found.results.encode(), _MAX_TEXT_BYTES),
    )
