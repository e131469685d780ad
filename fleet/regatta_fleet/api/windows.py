"""The operator API's endpoints of update windows: /api/v1/windows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Path
from sqlalchemy import Connection

from regatta_fleet.database.engine import Database
from regatta_fleet.rollouts import windowing
from regatta_fleet.rollouts.controller import Controller
from regatta_fleet.schemas import GroupWindows, WindowsRequest
from regatta_protocol.ids import DeviceId

__all__ = ["add_windows"]

_Group = Annotated[str, Path(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]


def add_windows(api: APIRouter, database: Database, controller: Controller, clock: Callable[[], float]) -> None:
    """Add the endpoints."""

    def carried_out(change: Callable[[Connection], set[DeviceId]]) -> int:
        def carry_out() -> int:
            with database.write() as tx:
                changed = change(tx)
            controller.tell(changed)
            return len(changed)

        return controller.call(carry_out)

    @api.get("/windows", tags=["windows"])
    def windows() -> tuple[GroupWindows, ...]:
        """The update windows that are set, by group."""
        with database.read() as tx:
            return windowing.describe_windows(tx)

    @api.put("/windows/{group}", tags=["windows"])
    def set_windows(group: _Group, request: WindowsRequest) -> GroupWindows:
        """Set the update windows of a group (`all`: every device whose group has none)."""
        count = carried_out(lambda tx: windowing.set_windows(tx, group, request.windows, clock()))
        return GroupWindows(group=group, windows=request.windows, devices=count)

    @api.delete("/windows/{group}", tags=["windows"], status_code=204)
    def clear_windows(group: _Group) -> None:
        """Take a group's update windows away."""
        carried_out(lambda tx: windowing.clear_windows(tx, group, clock()))
