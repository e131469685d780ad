"""Looking at processes while they change."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

__all__ = ["children_of"]


def children_of(pid: int) -> list[int]:
    """Return the processes that any thread of `pid` started and that have not been waited for."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # the thread has just ended
            found += map(int, (task / "children").read_text().split())
    return found
