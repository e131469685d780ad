"""Pauses between tries to open a source again: jitter under a cap that doubles, short again once it worked."""

from __future__ import annotations

import random
import threading

__all__ = ["Pauses"]

FIRST_S, CAP_S = 0.5, 30.0


class Pauses:
    """For one thread."""

    def __init__(self, stopping: threading.Event) -> None:
        """
        Args:
            stopping: ends a pause.
        """
        self._stopping = stopping
        self._cap_s = FIRST_S

    def restart(self) -> None:
        """Note that it works."""
        self._cap_s = FIRST_S

    def wait(self) -> None:
        """Let some time go by: at least half of what the cap says, so that a broken source costs no processor."""
        self._stopping.wait(random.uniform(self._cap_s / 2, self._cap_s))  # noqa: S311 - jitter
        self._cap_s = min(CAP_S, 2 * self._cap_s)
