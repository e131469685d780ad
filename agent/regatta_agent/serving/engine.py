"""The one thread that touches the model, behind a bounded queue.

The loop's thread submits work and gets its result back on the loop; a runtime's session is not thread-safe and has
this one owner. invoke() releases the GIL, so the loop goes on answering health checks meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Engine", "Finished"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Finished(Generic[T]):
    """What came of a piece of work: a value or an error, and when the thread began and ended with it."""

    value: T | None
    error: BaseException | None
    began_ns: int  # time.perf_counter_ns
    ended_ns: int


class Engine:
    """A thread that works off a queue in order."""

    def __init__(self, loop: asyncio.AbstractEventLoop, queue_length: int) -> None:
        self._loop = loop
        self._queue_length = queue_length
        # SimpleQueue is the fast one (C) and has no bound: `pending`, which only the loop's thread changes, is it.
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="inference", daemon=True)
        self._began_ns: int | None = None
        self.pending = 0

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def submit(self, work: Callable[[], T], done: Callable[[Finished[T]], None]) -> bool:
        """Have `work` done by the thread and `done` called on the loop; return False when the queue is full."""
        if self.pending >= self._queue_length:
            return False
        self.pending += 1

        def finish(finished: Finished[T]) -> None:
            self.pending -= 1
            done(finished)

        def run() -> None:
            began_ns = time.perf_counter_ns()
            self._began_ns = began_ns
            value, error = None, None
            try:
                value = work()
            except Exception as err:  # noqa: BLE001 - plug-in code: a runtime may raise anything; `done` logs it
                error = err
            self._began_ns = None
            finished = Finished(value, error, began_ns, time.perf_counter_ns())
            self._loop.call_soon_threadsafe(finish, finished)

        self._queue.put(run)
        return True

    def running_s(self) -> float:
        """Return for how long the work at hand has been going on; 0 when there is none."""
        began_ns = self._began_ns
        return 0.0 if began_ns is None else (time.perf_counter_ns() - began_ns) / 1e9

    def stop(self, timeout_s: float) -> bool:
        """Return whether the thread has ended after what was submitted before."""
        self._queue.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (run := self._queue.get()) is not None:
            run()
