"""Words to systemd (sd_notify(3)), over the socket that NOTIFY_SOCKET names."""

from __future__ import annotations

import logging
import os
import socket

__all__ = ["Notifier"]

logger = logging.getLogger(__name__)


class Notifier:
    """Says nothing when systemd did not start us."""

    def __init__(self, address: str | None, watchdog_s: float | None) -> None:
        self._address = address
        self.watchdog_s = watchdog_s

    @classmethod
    def from_environment(cls) -> Notifier:
        """Return the notifier that systemd asks for."""
        address = os.environ.get("NOTIFY_SOCKET")
        microseconds = os.environ.get("WATCHDOG_USEC", "")
        mine = os.environ.get("WATCHDOG_PID") in (None, str(os.getpid()))
        watchdog_s = int(microseconds) / 1e6 if microseconds.isdigit() and mine else None
        return cls(address, watchdog_s)

    def starting(self, seconds: float) -> None:
        """Say that the start takes up to so long from now."""
        self._say(f"EXTEND_TIMEOUT_USEC={seconds * 1e6:.0f}\nSTATUS=waits before it starts again")

    def ready(self) -> None:
        """Say that start is complete."""
        self._say("READY=1")

    def alive(self, status: str) -> None:
        """Feed the watchdog. Called by the loop itself, so that a loop that hangs is ended."""
        self._say(f"WATCHDOG=1\nSTATUS={status}")

    def stopping(self) -> None:
        """Say that the end has begun."""
        self._say("STOPPING=1")

    def _say(self, text: str) -> None:
        if self._address is None:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(1.0)
                sender.sendto(text.encode(), address)
        except OSError as err:
            logger.debug("event=notify_failed error=%s", err)
