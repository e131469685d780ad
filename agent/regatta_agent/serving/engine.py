"""The one owner of the model, behind a bounded queue: a thread, or for brief work the loop's thread itself.

The loop's thread submits work and gets its result back on the loop; a runtime's session is not thread-safe, so one
piece of work runs at a time. invoke() releases the GIL, so the loop goes on answering health checks meanwhile.

To hand work to a thread and back costs two wake-ups, more than a small model's inference (docs/adr/0007). Work that
has been brief of late is therefore done at once on the loop's thread, when nothing is queued, and one piece in each
turn of the loop: what arrives together queues for the thread as ever, so the bound of the queue holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

__all__ = ["Engine", "Finished"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_MEMORY = 8  # the mean forgets with this many pieces of work, so one slow piece is soon forgotten


@dataclass  # not frozen, which takes three times as long to make; nobody changes one
class Finished(Generic[T]):
    """What came of a piece of work: a value or an error, and when the thread began and ended with it."""

    value: T | None
    error: Exception | None
    began_ns: int  # time.perf_counter_ns
    ended_ns: int


class Engine:
    """A thread that works off a queue in order, and the loop's own thread for brief work."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, queue_length: int, brief_ns: int = 0, name: str = "inference"
    ) -> None:
        """Keep the bounds.

        Args:
            loop: whose thread submits.
            queue_length: how many pieces may wait or run.
            brief_ns: work that takes less on average may be done on the loop's thread; 0: none ever is.
            name: of the thread.
        """
        self._loop = loop
        self._queue_length = queue_length
        self._brief_ns = brief_ns
        self._mean_ns = brief_ns  # of `perform`ed work, exponentially weighted; not brief until it is measured
        self._had_its_turn = False  # a piece was done on the loop's thread in this turn of the loop
        # SimpleQueue is the fast one (C) and has no bound: `pending`, which only the loop's thread changes, is it.
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._began_ns: int | None = None
        self.pending = 0

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def perform(self, work: Callable[[], T], done: Callable[[Finished[T]], None]) -> bool:
        """Have `work` done and `done` called on the loop, both at once when such work is brief; False: queue full."""
        if self.pending or self._had_its_turn or self._mean_ns >= self._brief_ns:
            return self.submit(work, partial(self._measured, done))
        self._had_its_turn = True
        self._loop.call_soon(self._end_turn)
        self._measured(done, self._do(work))
        return True

    def _measured(self, done: Callable[[Finished[T]], None], finished: Finished[T]) -> None:
        self._mean_ns += (finished.ended_ns - finished.began_ns - self._mean_ns) // _MEMORY
        done(finished)

    def submit(self, work: Callable[[], T], done: Callable[[Finished[T]], None]) -> bool:
        """Have `work` done by the thread and `done` called on the loop; return False when the queue is full."""
        if self.pending >= self._queue_length:
            return False
        self.pending += 1

        def finish(finished: Finished[T]) -> None:
            self.pending -= 1
            done(finished)

        self._queue.put(lambda: self._hand_back(finish, self._do(work)))
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

    def _do(self, work: Callable[[], T]) -> Finished[T]:
        began_ns = time.perf_counter_ns()
        self._began_ns = began_ns
        value, error = None, None
        try:
            value = work()
        except Exception as err:  # noqa: BLE001 - plug-in code: a runtime may raise anything; `done` logs it
            error = err
        self._began_ns = None
        return Finished(value, error, began_ns, time.perf_counter_ns())

    def _hand_back(self, finish: Callable[[Finished[T]], None], finished: Finished[T]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended without waiting
            self._loop.call_soon_threadsafe(finish, finished)

    def _end_turn(self) -> None:
        self._had_its_turn = False

    def _work(self) -> None:
        while (run := self._queue.get()) is not None:
            run()
