"""Words to systemd (sd_notify(3)): ready, alive, stopping. Does nothing when no one listens."""

from __future__ import annotations

import contextlib
import os
import socket

__all__ = ["notify", "watchdog_period_s"]


def notify(state: str) -> None:
    """Send `state`, for example READY=1, to the service manager if there is one."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
        out.settimeout(1.0)
        out.sendto(state.encode(), address)


def watchdog_period_s() -> float | None:
    """Return how often to say WATCHDOG=1 (half of what systemd allows), or None when it does not watch."""
    allowed_us = os.environ.get("WATCHDOG_USEC", "")
    return int(allowed_us) / 2e6 if allowed_us.isdigit() and int(allowed_us) > 0 else None
