"""Frames on their way from a source's thread to the one that asks: a line of bounded length with a policy."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from regatta_agent.pipeline.settings import WhenFull
from regatta_agent.serving.tensors import Array

__all__ = ["Frame", "FrameLine"]


@dataclass(frozen=True)
class Frame:
    """One thing to ask about. `done` is called when every sink has the result."""

    key: str
    item: bytes | Array
    at: float  # seconds since 1970, when it came
    done: Callable[[], None] = lambda: None


class FrameLine:
    """A bounded line of frames. One thread puts, one takes; each may close it."""

    def __init__(self, length: int, policy: WhenFull) -> None:
        self._length = length
        self._policy = policy
        self._frames: deque[Frame] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self.came = 0
        self.dropped = 0

    def put(self, frame: Frame) -> bool:
        """Add a frame, drop one by the policy, or wait for room; return False when the line is closed."""
        with self._changed:
            self.came += 1
            if self._policy == "block":
                self._changed.wait_for(lambda: self._closed or len(self._frames) < self._length)
            if self._closed:
                return False
            if len(self._frames) < self._length:
                self._frames.append(frame)
            elif self._policy == "drop-oldest":
                self._frames.popleft()
                self._frames.append(frame)
                self.dropped += 1
            else:
                self.dropped += 1
            self._changed.notify_all()
            return True

    def take(self, timeout_s: float) -> Frame | None:
        """Return the next frame, or None when none came in time or the line is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or bool(self._frames), timeout_s)
            if not self._frames:
                return None
            frame = self._frames.popleft()
            self._changed.notify_all()
            return frame

    def close(self) -> None:
        """Take no more frames; those in the line can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def is_ended(self) -> bool:
        """Whether it is closed and empty."""
        with self._changed:
            return self._closed and not self._frames
