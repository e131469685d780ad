"""Checkpoints beside the work: a busy disk takes seconds to sync, and the model is asked on meanwhile.

One is under way at a time, on a thread of its own. It covers what had been appended when it was begun; what came since
counts from the next one, so a slow disk costs more to ask again after a kill, and never a record.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from regatta_agent.batch.journal import Journal

__all__ = ["Checkpoints"]


class Checkpoints:
    """Those of one journal, for the thread that appends to it."""

    def __init__(self, journal: Journal, every_s: float) -> None:
        """Begin the first after `every_s`, and each next one so long after the one before, or when that is done."""
        self._journal = journal
        self._every_s = every_s
        self._due_at = time.monotonic() + every_s
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="disk")
        self._under_way: Future[None] | None = None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._disk.shutdown()  # waits: the journal's files are its caller's again

    def go_on(self) -> bool:
        """Begin one when it is due; return whether one was finished since the last call.

        Raises:
            StorageFull, OSError: when that one failed.
        """
        finished = self._under_way is not None and self._under_way.done()
        if finished:
            self.finish()
        if self._under_way is None and time.monotonic() >= self._due_at:
            self._under_way = self._disk.submit(self._journal.keep, self._journal.mark())
            self._due_at = time.monotonic() + self._every_s
        return finished

    def finish(self) -> None:
        """Wait for the one under way. The kernel tells of a failed write once, to whoever syncs first: here.

        Raises:
            StorageFull, OSError: when it failed.
        """
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()
