"""The operator API's endpoints of batch jobs: /api/v1/batch."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from typing import Annotated, BinaryIO

from fastapi import APIRouter, Path
from fastapi.responses import StreamingResponse
from sqlalchemy import Connection

from regatta_fleet.batches import batching, pulling
from regatta_fleet.batches.results import ResultsStore
from regatta_fleet.database import batch as rows
from regatta_fleet.database.engine import Database
from regatta_fleet.rollouts.controller import Controller
from regatta_fleet.schemas import BatchDetail, BatchRequest, ResultsRequest
from regatta_protocol.ids import DeviceId, DeviceIdField

__all__ = ["add_batch"]

_BatchId = Annotated[str, Path(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
_READ_BYTES = 256 * 1024


def add_batch(
    api: APIRouter,
    database: Database,
    controller: Controller,
    results: ResultsStore,
    clock: Callable[[], float],
) -> None:
    """Add the endpoints."""

    def carried_out(identifier: str, change: Callable[[Connection], set[DeviceId]]) -> BatchDetail:
        def carry_out() -> BatchDetail:
            with database.write() as tx:
                changed = change(tx)
                found = batching.describe(tx, identifier)
            controller.tell(changed)
            return found

        return controller.call(carry_out)

    @api.post("/batch", tags=["batch"], status_code=201)
    def start(request: BatchRequest) -> BatchDetail:
        """Have devices answer the records of an input that lies on them."""
        identifier = f"b-{secrets.token_hex(4)}"
        found = carried_out(identifier, lambda tx: batching.start_batch(tx, identifier, request, clock()))
        with database.read() as tx:
            known = rows.list_ids(tx)
        results.keep_only(known)  # starting one forgets those that ended long ago
        return found

    @api.get("/batch", tags=["batch"])
    def batches() -> tuple[BatchDetail, ...]:
        """The newest batches, newest first."""
        with database.read() as tx:
            return batching.list_batches(tx)

    @api.get("/batch/{batch}", tags=["batch"])
    def batch(batch: _BatchId) -> BatchDetail:
        """One batch, and how it stands on each device."""
        with database.read() as tx:
            return batching.describe(tx, batch)

    @api.post("/batch/{batch}/cancel", tags=["batch"])
    def cancel(batch: _BatchId) -> BatchDetail:
        """End a batch on every device that has not ended it, and ask for its outputs no more."""
        return carried_out(batch, lambda tx: batching.cancel_batch(tx, batch, clock()))

    @api.post("/batch/{batch}/results", tags=["batch"])
    def ask_results(batch: _BatchId, request: ResultsRequest) -> BatchDetail:
        """Have devices that have done a batch send its outputs here; those that are here already are not sent again."""
        return carried_out(batch, lambda tx: pulling.ask_results(tx, batch, request, clock()))

    @api.get(
        "/batch/{batch}/results/{device}",
        tags=["batch"],
        response_class=StreamingResponse,
        responses={200: {"content": {"application/octet-stream": {}}, "description": "The output"}},
    )
    def output(batch: _BatchId, device: DeviceIdField) -> StreamingResponse:
        """The output of a batch that a device has sent."""
        file = results.open(batch, device)
        headers = {"Content-Length": str(os.fstat(file.fileno()).st_size)}
        return StreamingResponse(_pieces(file), media_type="application/octet-stream", headers=headers)

    @api.delete("/batch/{batch}/results", tags=["batch"])
    def forget_results(batch: _BatchId) -> BatchDetail:
        """Remove the outputs that are here, and ask for none any more; the devices keep theirs."""
        found = carried_out(batch, lambda tx: pulling.forget_results(tx, batch, clock()))
        results.remove(batch)
        return found


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while piece := file.read(_READ_BYTES):
            yield piece
