"""Setting and clearing update windows of groups: stored, told in the history, and carried to the devices of the group.

A device that is assigned a model gets a new generation, whose assignment carries the windows; the caller publishes it
(controller.Controller.tell). What waits for a window is each device's to say.
"""

from __future__ import annotations

from sqlalchemy import Connection

from regatta_fleet.core.policies import EVERYONE
from regatta_fleet.database import devices
from regatta_fleet.database.events import add_event
from regatta_fleet.database.update_windows import delete_windows, list_windows, put_windows
from regatta_fleet.errors import NotFound
from regatta_fleet.schemas import GroupWindows
from regatta_protocol.ids import DeviceId

__all__ = ["clear_windows", "describe_windows", "set_windows"]


def set_windows(tx: Connection, group: str, windows: tuple[str, ...], now: float) -> set[DeviceId]:
    """Set a group's update windows; return the devices that shall know them now."""
    put_windows(tx, group, windows, now)
    add_event(tx, now, "window_set", f"{_whom(group)}: {', '.join(windows)}")
    return _touch(tx, group, now)


def clear_windows(tx: Connection, group: str, now: float) -> set[DeviceId]:
    """Take a group's update windows away; return the devices that shall know it now.

    Raises:
        NotFound: when none is set for the group.
    """
    if not delete_windows(tx, group):
        raise NotFound(f"{_whom(group)}: no update window is set; `regatta window show` lists what is")
    add_event(tx, now, "window_cleared", _whom(group))
    return _touch(tx, group, now)


def describe_windows(tx: Connection) -> tuple[GroupWindows, ...]:
    """Return the windows of every group as the API shows them, with how many devices run a model by them."""
    found = list_windows(tx)
    return tuple(
        GroupWindows(group=group, windows=windows, devices=len(_governed(tx, group, frozenset(found))))
        for group, windows in found.items()
    )


def _touch(tx: Connection, group: str, now: float) -> set[DeviceId]:
    touched = _governed(tx, group, frozenset(list_windows(tx)))
    for device in touched:
        devices.bump_generation(tx, device, now)
    return touched


def _governed(tx: Connection, group: str, groups_with_windows: frozenset[str]) -> set[DeviceId]:
    """Return the devices that are assigned a model and go by the windows of `group`."""
    if group != EVERYONE:
        return set(devices.find_assigned(tx, group=group))
    others = {one for other in groups_with_windows - {EVERYONE} for one in devices.find_assigned(tx, group=other)}
    return set(devices.find_assigned(tx)) - others


def _whom(group: str) -> str:
    return "all devices" if group == EVERYONE else f"group {group}"
