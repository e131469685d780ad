"""The one owner of the model: a thread behind a bounded queue, or the loop's thread while that has nothing to do.

The loop's thread submits work and gets its result back on the loop; a runtime's session is not thread-safe, so one
piece of work runs at a time. invoke() releases the GIL, so the loop goes on answering health checks meanwhile.

To hand work to a thread and back costs two wake-ups, more than a small model's inference (docs/adr/0007). So the loop
may also do a piece at once, when nothing is pending; what is brief enough for that, its user knows (lane.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Engine", "Finished"]

T = TypeVar("T")


@dataclass  # not frozen, which takes three times as long to make; nobody changes one
class Finished(Generic[T]):
    """What came of a piece of work: a value or an error, and when it was begun and ended."""

    value: T | None
    error: Exception | None
    began_ns: int  # time.perf_counter_ns
    ended_ns: int


class Engine:
    """A thread that works off a queue in order, and the loop's own thread when its user says so."""

    def __init__(self, loop: asyncio.AbstractEventLoop, queue_length: int, name: str = "inference") -> None:
        """Keep the bounds.

        Args:
            loop: whose thread submits.
            queue_length: how many pieces may wait or run.
            name: of the thread.
        """
        self._loop = loop
        self._queue_length = queue_length
        # SimpleQueue is the fast one (C) and has no bound: `pending`, which only the loop's thread changes, is it.
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._began_ns: int | None = None
        self.pending = 0  # pieces that the thread was given and has not handed back

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def perform(self, work: Callable[[], T]) -> Finished[T]:
        """Return what comes of `work`, done now; on the loop's thread only while nothing is pending."""
        began_ns = time.perf_counter_ns()
        self._began_ns = began_ns
        value, error = None, None
        try:
            value = work()
        except Exception as err:  # noqa: BLE001 - plug-in code: a runtime may raise anything; who asked logs it
            error = err
        self._began_ns = None
        return Finished(value, error, began_ns, time.perf_counter_ns())

    def submit(self, work: Callable[[], T], done: Callable[[Finished[T]], None]) -> bool:
        """Have `work` done by the thread and `done` called on the loop; return False when the queue is full."""
        if self.pending >= self._queue_length:
            return False
        self.pending += 1

        def finish(finished: Finished[T]) -> None:
            self.pending -= 1
            done(finished)

        self._queue.put(lambda: self._hand_back(finish, self.perform(work)))
        return True

    def running_s(self) -> float:
        """Return for how long the work at hand has been going on; 0 when there is none. Any thread may ask."""
        began_ns = self._began_ns
        return 0.0 if began_ns is None else (time.perf_counter_ns() - began_ns) / 1e9

    def stop(self, timeout_s: float) -> bool:
        """Return whether the thread has ended after what was submitted before."""
        self._queue.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _hand_back(self, finish: Callable[[Finished[T]], None], finished: Finished[T]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended without waiting
            self._loop.call_soon_threadsafe(finish, finished)

    def _work(self) -> None:
        while (run := self._queue.get()) is not None:
            run()
