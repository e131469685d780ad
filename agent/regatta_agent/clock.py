"""The time, as an object, so that tests may move it; and what is known of it where a board has no clock battery."""

from __future__ import annotations

import time
from typing import Protocol

__all__ = ["Clock", "FlooredClock", "SystemClock"]


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


class FlooredClock:
    """Both times; the wall's does not fall below a floor, and goes on above it while the board's own clock is not set.

    A wait until a moment ends in the time that it was meant to take, whatever the board's clock says.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._floor_s = 0.0
        self._since_s = clock.monotonic()  # when the floor was learned

    def monotonic(self) -> float:
        """Return seconds that only grow, from an unknown start."""
        return self._clock.monotonic()

    def wall(self, floor_s: float) -> float:
        """Return seconds since 1970, at least `floor_s` and the time that has passed since that was first given."""
        now_s = self._clock.monotonic()
        if floor_s != self._floor_s:
            self._floor_s, self._since_s = floor_s, now_s
        return max(self._clock.wall(), floor_s + now_s - self._since_s)

    def is_unset(self, floor_s: float) -> bool:
        """Return whether the board's own clock says a time that is past for sure."""
        return self._clock.wall() < floor_s
