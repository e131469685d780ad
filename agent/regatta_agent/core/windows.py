"""What waits for the update window of this device, and what does not. Pure.

Waiting: the race of a version, the start of its worker and its taking over, so that the version that serves changes
only while a window is open; a new race beside what serves; and on a metered link the download, for what is fetched
hours ahead may be superseded by then. Not waiting: metadata and manifests; a device that serves nothing yet; a version
that serves and lost a file; everything that leads away from a failure: the way back from a trial, failover, restarts of
workers; and what the fleet marks as urgent, its own way back included.
"""

from __future__ import annotations

from typing import NamedTuple

from regatta_agent.core.facts import Facts, Limits
from regatta_agent.core.installs import AgentRecord, Install
from regatta_protocol.errors import Rejected
from regatta_protocol.messages import Assignment, InstallState
from regatta_protocol.update_window import UpdateWindow, next_opening, parse_window

__all__ = ["WindowWait", "unreadable", "waits_for_window", "window_wait", "windows_of"]

_S = InstallState
_WAITS = "waits: "
_CLOCK_UNSET = (
    f"{_WAITS}this board's clock is not set, so that it cannot tell when its update window opens: it goes on when the "
    "clock is set, or {minutes:.0f} min after the agent's start"
)


class WindowWait(NamedTuple):
    reason: str
    opens_at: float | None  # seconds since 1970; None while the time is not known


def windows_of(record: AgentRecord, limits: Limits) -> tuple[UpdateWindow, ...]:
    """Return the windows that hold: the device's own, else those of the fleet that can be read here."""
    if limits.update_window or record.assignment is None:
        return limits.update_window
    return tuple(window for window in map(_read, record.assignment.update_window) if isinstance(window, UpdateWindow))


def unreadable(assignment: Assignment | None) -> tuple[str, ...]:
    """Return why windows of the fleet cannot be read here, so that they are not waited for."""
    given = assignment.update_window if assignment is not None else ()
    return tuple(str(one) for one in map(_read, given) if isinstance(one, Rejected))


def waits_for_window(install: Install) -> bool:
    """Return whether what was last said of the version is that it waits for a window, or for the time to know one."""
    return install.opens_at is not None or (install.reason or "").startswith(_WAITS)


def window_wait(record: AgentRecord, facts: Facts, limits: Limits, install: Install) -> WindowWait | None:
    """Return why the next step of `install` waits for a window, or None when it does not."""
    windows = windows_of(record, limits)
    if not windows or not _may_wait(record, limits, install):
        return None
    if facts.clock_unset:
        wait_s = limits.unset_clock_wait_s
        told = WindowWait(_CLOCK_UNSET.format(minutes=wait_s / 60), None)
        return told if facts.running_s < wait_s else None
    opening = next_opening(windows, facts.now_s)
    return WindowWait(f"{_WAITS}window opens {opening.text}", opening.at_s) if opening is not None else None


def _may_wait(record: AgentRecord, limits: Limits, install: Install) -> bool:
    if install.state is _S.COMMITTED:
        return True  # to be raced anew beside what serves: that is never urgent
    waiting = (_S.VERIFIED, _S.PLACED, _S.DOWNLOADING) if limits.metered else (_S.VERIFIED, _S.PLACED)
    if install.state not in waiting or _is_urgent(record, install):
        return False
    mending = install.committed_at is not None and record.replaced(install) is None
    return not mending and any(one.state is _S.COMMITTED for one in record.all())


def _is_urgent(record: AgentRecord, install: Install) -> bool:
    wanted = record.assignment.models.get(install.name) if record.assignment is not None else None
    return wanted is not None and wanted.ignore_window


def _read(text: str) -> UpdateWindow | Rejected:
    try:
        return parse_window(text)
    except Rejected as err:
        return err
