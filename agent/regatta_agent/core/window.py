"""Which chunks of a blob to ask for next, and which to ask for again. Pure: chunk indices in, ranges out.

A window of chunks is on its way at a time; the next Get goes out when half of it has come. When none comes for a
while, what is on its way counts as lost and is asked for anew, with the window halved; it grows again as chunks come.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["Window"]

_FIRST = 8  # chunks: 128 KiB
_LARGEST = 64  # chunks: 1 MiB, the bandwidth-delay product of 40 Mbit/s and 200 ms
_MAX_RANGES = 256  # of one Get
_LOST_AFTER_S = 2.0  # ten times a bad round trip


class Window:
    """The chunks of one transfer that are not here yet."""

    def __init__(self, missing: Iterable[int]) -> None:
        self._missing = dict.fromkeys(missing)  # in order
        self._asked: dict[int, None] = {}
        self._size = _FIRST
        self._heard_s: float | None = None

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return not self._missing

    def arrived(self, index: int, now_s: float) -> None:
        """Take note of a chunk."""
        self._missing.pop(index, None)
        self._asked.pop(index, None)
        self._size = min(_LARGEST, self._size + 1)
        self._heard_s = now_s

    def ask(self, now_s: float) -> tuple[tuple[int, int], ...]:
        """Return the ranges [start, stop) to ask for now; they count as on their way from here on."""
        if self._heard_s is None:
            self._heard_s = now_s
        if self._asked and now_s - self._heard_s > _LOST_AFTER_S:
            self._asked.clear()
            self._size = max(1, self._size // 2)
            self._heard_s = now_s
        if len(self._asked) > self._size // 2:
            return ()
        ranges: list[tuple[int, int]] = []
        for index in self._missing:
            if index in self._asked:
                continue
            if len(self._asked) >= self._size:
                break
            if ranges and ranges[-1][1] == index:
                ranges[-1] = (ranges[-1][0], index + 1)
            elif len(ranges) < _MAX_RANGES:
                ranges.append((index, index + 1))
            else:
                break
            self._asked[index] = None
        return tuple(ranges)
