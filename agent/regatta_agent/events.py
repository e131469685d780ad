"""What comes into the loop's inbox: events of the bus and of child processes.

Threads only put these; the loop alone acts on them.
"""

from __future__ import annotations

import signal
from typing import Literal, NamedTuple

from regatta_protocol import bus

__all__ = ["INBOX_LENGTH", "ChildEnded", "ChildLine", "Event"]

INBOX_LENGTH = 1000  # at 64 KiB a chunk this bounds the memory of a stalled loop to 64 MiB
_NO_DESCRIPTORS = "Too many open files"
# As Python, the dynamic loader and the C library say it.
_NO_MEMORY = ("MemoryError", "Cannot allocate memory", "failed to map segment", "out of memory")


class ChildLine(NamedTuple):
    """A line of a child's standard output, without its end."""

    child: str
    line: bytes


class ChildEnded(NamedTuple):
    """A child has ended and its output was read; always the last event of a child."""

    child: str
    status: int  # as subprocess gives it: negative is a signal
    errors: str  # the end of its standard error

    @property
    def lack(self) -> Literal["memory", "descriptors"] | None:
        """What the board had none of for it, as far as its end tells; the kernel kills when memory runs out."""
        if _NO_DESCRIPTORS in self.errors:
            return "descriptors"
        killed = self.status == -signal.SIGKILL
        return "memory" if killed or any(words in self.errors for words in _NO_MEMORY) else None

    def describe(self) -> str:
        """Return in words how it ended."""
        how = f"ended by signal {-self.status}" if self.status < 0 else f"exit status {self.status}"
        last = self.errors.strip().splitlines()[-1:] or [""]
        return f"{how}: {last[0][:300]}" if last[0] else how


Event = bus.Event | ChildLine | ChildEnded
