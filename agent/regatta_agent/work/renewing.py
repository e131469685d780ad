"""Has this device's certificate renewed in time: a child looks once a day whether it is due, and renews it.

The child does all of it (regatta_provisioning.renewal); here is only when. Without network it is tried again, with
back-off and full jitter. A renewal changes a file that the bus reads at its next connection, so nothing is interrupted.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

from regatta_agent.events import ChildEnded, ChildLine, Event
from regatta_agent.work.children import Child, Launcher
from regatta_protocol.backoff import backoff_s
from regatta_protocol.errors import StorageFull

__all__ = ["Renewing"]

logger = logging.getLogger(__name__)

_FIRST_S = 600.0  # after a power cut a fleet starts at once; its devices must not ask at once
_DAY_S = 86_400.0
_BACKOFF_BASE_S, _BACKOFF_CAP_S = 60.0, 6 * 3600.0
_TOO_LONG_S = 120.0
_FULL_S = 3600.0  # at least, after a disk that did not take the new certificate
_SPACE_CAME_BYTES = 65_536  # then it is asked for at once: the identity takes 20 kB


class Renewing:
    """Used by the loop's thread only."""

    def __init__(self, launcher: Launcher, folder: Path, rng: Random, boot: str, free_bytes: Callable[[], int]) -> None:
        """
        Args:
            folder: of the identity.
            free_bytes: how much is left of its disk.
        """
        self._launcher = launcher
        self._folder = folder
        self._rng = rng
        self._boot = boot
        self._free_bytes = free_bytes
        self._full_at_bytes: int | None = None
        self._count = 0
        self._failures = 0
        self._next_s: float | None = None
        self._child: Child | None = None
        self._name = ""
        self._deadline_s = 0.0

    def tick(self, now_s: float) -> None:
        """Start the child when its time has come, or end one that takes too long."""
        if self._next_s is None:
            self._next_s = now_s + self._rng.uniform(0.0, _FIRST_S)
        if self._child is not None:
            if now_s > self._deadline_s:
                self._child.kill()  # its end comes as an event
            return
        if now_s < self._next_s and not self._space_came():
            return
        self._full_at_bytes = None
        self._count += 1
        self._name = f"renewal-{self._boot[:8]}-{self._count}"
        self._deadline_s = now_s + _TOO_LONG_S
        argv = [sys.executable, "-m", "regatta_provisioning.renewal", str(self._folder)]
        try:
            self._child = self._launcher.launch(self._name, argv, b"")
        except OSError as err:
            self._failed(f"it cannot be started: {err}", now_s)

    def handle(self, event: Event, now_s: float) -> None:
        """Take in what the child said, or that it ended."""
        if self._child is None or not isinstance(event, ChildLine | ChildEnded) or event.child != self._name:
            return
        if isinstance(event, ChildLine):
            if event.line.startswith(b"renewed"):
                logger.info("event=certificate_renewed said=%s", event.line.decode(errors="replace")[:100])
            return
        self._child = None
        if event.status == StorageFull.exit_code:
            self._full_at_bytes = self._free_bytes()
            self._failed(event.describe(), now_s, _FULL_S)
            return
        if event.status != 0:
            self._failed(event.describe(), now_s)
            return
        self._failures = 0
        self._next_s = now_s + self._rng.uniform(0.5, 1.0) * _DAY_S

    def cancel(self) -> None:
        """Leave nothing running."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def _space_came(self) -> bool:
        return self._full_at_bytes is not None and self._free_bytes() >= self._full_at_bytes + _SPACE_CAME_BYTES

    def _failed(self, why: str, now_s: float, least_s: float = 0.0) -> None:
        wait_s = least_s + backoff_s(self._failures, _BACKOFF_BASE_S, _BACKOFF_CAP_S, self._rng)
        self._failures += 1
        self._next_s = now_s + wait_s
        logger.warning("event=certificate_not_renewed next_s=%.0f reason=%s", wait_s, why)
