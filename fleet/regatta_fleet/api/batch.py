"""The operator API's endpoints of batch jobs: /api/v1/batch."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Path
from sqlalchemy import Connection

from regatta_fleet import batching
from regatta_fleet.controller import Controller
from regatta_fleet.database.engine import Database
from regatta_fleet.schemas import BatchDetail, BatchRequest
from regatta_protocol.ids import DeviceId

__all__ = ["add_batch"]

_BatchId = Annotated[str, Path(max_length=64)]


def add_batch(api: APIRouter, database: Database, controller: Controller, clock: Callable[[], float]) -> None:
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
        return carried_out(identifier, lambda tx: batching.start_batch(tx, identifier, request, clock()))

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
        """End a batch on every device that has not ended it."""
        return carried_out(batch, lambda tx: batching.cancel_batch(tx, batch, clock()))
