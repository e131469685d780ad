"""The time, as an object, so that tests may move it."""

from __future__ import annotations

import time
from typing import Protocol

__all__ = ["Clock", "SystemClock"]


class Clock(Protocol):
    """Seconds, in two ways."""

    def monotonic(self) -> float:
        """Return seconds that only grow, from an unknown start."""

    def wall(self) -> float:
        """Return seconds since 1970, as far as the board knows."""


class SystemClock:
    """The machine's clocks."""

    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()
