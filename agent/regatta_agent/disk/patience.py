"""When a disk that refused something is asked again: for the record and for telemetry alike.

A full disk is asked again once there is more space, or after an hour; another fault after a wait that doubles. Which
moment it is, and how much is free, is the caller's to say.
"""

from __future__ import annotations

from regatta_protocol.errors import StorageFull

__all__ = ["Patience"]

_FAULT_BASE_S = 5.0  # after another fault than a full disk: a folder that cannot be written, no descriptor left
_FAULT_CAP_S = 300.0
_SPACE_CAME_BYTES = 65_536  # enough for a record or for some telemetry; less comes and goes


class Patience:
    """How long to leave one disk alone. Times are seconds on a monotonic clock."""

    def __init__(self, full_wait_s: float) -> None:
        self._full_wait_s = full_wait_s
        self._again_s: float | None = None
        self._full_at_bytes: int | None = None
        self._faults = 0

    @property
    def tried(self) -> bool:
        """Whether the disk refused what it was asked last."""
        return self._again_s is not None

    def may_ask(self, now_s: float, free_bytes: int) -> bool:
        """Return whether it is time to ask."""
        if self._again_s is None or now_s >= self._again_s:
            return True
        return self._full_at_bytes is not None and free_bytes >= self._full_at_bytes + _SPACE_CAME_BYTES

    def refused(self, error: Exception, now_s: float, free_bytes: int) -> None:
        """Take note that the disk refused, and why."""
        # SQLite says of a full disk too that it cannot open a file.
        if isinstance(error, StorageFull) or free_bytes < _SPACE_CAME_BYTES:
            self._again_s, self._full_at_bytes = now_s + self._full_wait_s, free_bytes
            return
        wait_s = min(_FAULT_CAP_S, _FAULT_BASE_S * 2.0 ** min(self._faults, 10))
        self._again_s, self._full_at_bytes, self._faults = now_s + wait_s, None, self._faults + 1

    def obeyed(self) -> None:
        """Take note that the disk did what it was asked."""
        self._again_s, self._full_at_bytes, self._faults = None, None, 0
