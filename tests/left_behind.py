"""What a piece of work leaves in this process's memory each time it is done, counted in Python's own blocks.

Exact, unlike the size of a process: no page and no fragment counts. Nothing is collected meanwhile, for at rest Python
collects garbage of all ages so seldom that what waits for that counts as left.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable

__all__ = ["blocks_left"]


def blocks_left(work: Callable[[], object], times: int, *, warm_up: int = 20) -> int:
    """Return how many more blocks of memory are taken after `times` calls than after `warm_up`."""
    gc.collect()
    gc.disable()
    try:
        for _ in range(warm_up):
            work()
        before = sys.getallocatedblocks()
        for _ in range(times):
            work()
        return sys.getallocatedblocks() - before
    finally:
        gc.enable()
