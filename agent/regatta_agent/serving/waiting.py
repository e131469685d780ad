"""What waits its turn: by priority, then in order of arrival; an item leaves when its deadline has passed. Pure."""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

__all__ = ["DEFAULT_PRIORITY", "LOWEST_PRIORITY", "Waiting"]

T = TypeVar("T")

# As Triton's scheduling-policy extension has it, 1 is the highest priority and 0 asks for the default.
DEFAULT_PRIORITY = 5
LOWEST_PRIORITY = 10


class Waiting(Generic[T]):
    """A queue; its user keeps the bound."""

    def __init__(self) -> None:
        self._entries: list[tuple[int, int, int | None, T]] = []  # priority, number, deadline, item: a heap
        self._arrived = 0
        self.soonest_ns: int | None = None  # no deadline of what waits is before this

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, item: T, priority: int = DEFAULT_PRIORITY, deadline_ns: int | None = None) -> None:
        """Let `item` wait."""
        self._arrived += 1
        heapq.heappush(self._entries, (priority, self._arrived, deadline_ns, item))
        if deadline_ns is not None:
            self.soonest_ns = deadline_ns if self.soonest_ns is None else min(self.soonest_ns, deadline_ns)

    def take(self, count: int = 1) -> list[T]:
        """Return the next items, at most `count`, best first."""
        return [heapq.heappop(self._entries)[3] for _ in range(min(count, len(self._entries)))]

    def expire(self, now_ns: int) -> list[T]:
        """Return the items whose deadline has passed, which wait no longer."""
        if self.soonest_ns is None or now_ns < self.soonest_ns:
            return []
        late = [entry for entry in self._entries if entry[2] is not None and entry[2] <= now_ns]
        if late:
            numbers = {entry[1] for entry in late}
            self._entries = [entry for entry in self._entries if entry[1] not in numbers]
            heapq.heapify(self._entries)
        self.soonest_ns = min((entry[2] for entry in self._entries if entry[2] is not None), default=None)
        return [entry[3] for entry in sorted(late, key=lambda entry: entry[1])]
