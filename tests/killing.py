"""Ends the program, as SIGKILL would, at the n-th time that it syncs something to disk.

`write_durably` syncs twice: before the rename (dying there leaves the old file) and after it (the new one). `Killed`
is no Exception, so no clean-up of the code under test runs, as none would.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock


class Killed(BaseException):
    """The program ends here."""


@contextmanager
def killed_at(point: int) -> Iterator[None]:
    """Raise Killed in place of the sync number `point`, counted from 0."""
    real, left = os.fsync, [point]

    def fsync(descriptor: int) -> None:
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        real(descriptor)

    with mock.patch("os.fsync", fsync):
        yield


def every_kill(run: Callable[[int], None], limit: int = 60) -> int:
    """Call `run` with 0, 1, 2, … until it is not killed any more, and return how often it was.

    `run` does the work within `killed_at`, and lets Killed through after checking what must hold.
    """
    for point in range(limit):
        try:
            run(point)
        except Killed:
            continue
        return point
    raise AssertionError(f"still killed at point {limit}: raise the limit")
