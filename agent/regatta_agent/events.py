"""What comes into the loop's inbox: events of the bus and of child processes.

Threads only put these; the loop alone acts on them.
"""

from __future__ import annotations

from dataclasses import dataclass

from regatta_protocol import bus

__all__ = ["INBOX_LENGTH", "ChildEnded", "ChildLine", "Event"]

INBOX_LENGTH = 1000  # at 64 KiB a chunk this bounds the memory of a stalled loop to 64 MiB


@dataclass(frozen=True)
class ChildLine:
    """A line of a child's standard output, without its end."""

    child: str
    line: bytes


@dataclass(frozen=True)
class ChildEnded:
    """A child has ended and its output was read; always the last event of a child."""

    child: str
    status: int  # as subprocess gives it: negative is a signal
    errors: str  # the end of its standard error

    def describe(self) -> str:
        """Return in words how it ended."""
        how = f"ended by signal {-self.status}" if self.status < 0 else f"exit status {self.status}"
        last = self.errors.strip().splitlines()[-1:] or [""]
        return f"{how}: {last[0][:300]}" if last[0] else how


Event = bus.Event | ChildLine | ChildEnded
