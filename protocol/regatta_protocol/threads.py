"""Threads that begin within a bounded time, or not at all: `BoundedThread`, for processes that must not hang.

`threading.Thread.start` waits without a limit for the new thread to say that it runs. One that dies of want of memory
before it can say so leaves its starter waiting for ever (CPython 3.10 to 3.13, `Thread._bootstrap_inner`; found with an
agent at its limit of address space). Here the wait has an end, and a thread that comes too late does nothing. Beginning
and ending are told by bare locks, which need no memory.

Such a thread keeps no process from ending, like a daemon thread. Nothing here ends one that runs.
"""

from __future__ import annotations

import _thread
from collections.abc import Callable

from regatta_protocol.errors import Exhausted

__all__ = ["BoundedThread"]

_BEGIN_S = 5.0  # a thread begins within some 0.1 ms; a board that swaps needs longer


class BoundedThread:
    """A thread with one life: `start` it once."""

    def __init__(self, work: Callable[[], None], name: str) -> None:
        """
        Args:
            work: what it does.
            name: for messages.
        """
        self._work = work
        self._name = name
        self._gate = _thread.allocate_lock()
        self._too_late = False
        self._identity: int | None = None
        self._beginning, self._living = _thread.allocate_lock(), _thread.allocate_lock()
        self._beginning.acquire()  # until it runs
        self._living.acquire()  # until its end

    def start(self) -> None:
        """Begin.

        Raises:
            Exhausted: when the board gives no thread, or one that does not begin in time; it will not begin later.
        """
        try:
            _thread.start_new_thread(self._run, ())
        except (RuntimeError, MemoryError) as err:
            raise Exhausted(f"no thread could be started for {self._name} ({err or 'no memory'})") from err
        if self._beginning.acquire(timeout=_BEGIN_S):
            return
        with self._gate:
            self._too_late = not self._beginning.acquire(blocking=False)
        if self._too_late:
            raise Exhausted(f"no thread could be started for {self._name} (not begun within {_BEGIN_S:g} s)")

    def is_alive(self) -> bool:
        """Return whether it has begun and not ended."""
        return self._identity is not None and self._living.locked()

    def is_current(self) -> bool:
        """Return whether the caller runs in it."""
        return self._identity == _thread.get_ident()

    def join(self, timeout_s: float) -> None:
        """Wait for its end, at most so long; one that has not begun has no end to wait for."""
        if self.is_alive() and self._living.acquire(timeout=timeout_s):
            self._living.release()

    def _run(self) -> None:
        with self._gate:
            if self._too_late:
                return
            self._identity = _thread.get_ident()
            self._beginning.release()
        try:
            self._work()
        finally:
            self._work = _nothing  # it may refer to who holds this thread, and a circle waits long to be collected
            self._living.release()


def _nothing() -> None:
    """The work of a thread that has ended."""
