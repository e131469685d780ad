"""Does a candidate's memory grow with every inference? Pure: figures of a worker's memory in, a verdict out.

A leak shows in every stretch of a run; what a runtime, an allocator or a cache takes once shows in one or two. Resident
pages of files are left out, for the kernel brings those in and drops them as it likes.

Threads that each fill caches of their own can grow in every stretch of a short run, and then never again: LiteRT's
OpenVINO plug-in took 0.7 MB in its first 2,500 inferences, and 0.06 MB in the 27,500 after. So whoever looks like a
leak is made to infer as often again at a stretch, and only a leak goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

__all__ = ["goes_on", "leaked_bytes_per_inference"]

_STRETCHES = 4  # fewer than that look alike for a cache that fills and for a leak; more are cut too short to grow each
_MIN_GROWTH_BYTES = 512 * 1024  # glibc's heap grows by 128 KiB at a time, Python's by 256 KiB or 1 MiB
_MIN_BYTES_PER_INFERENCE = 64.0  # the least that malloc hands out, with its header, is 32 bytes
_GOES_ON = 0.5  # of the growth there was; a heap that grows by steps may be one step short


def leaked_bytes_per_inference(memory_bytes: Sequence[int], inferences: Sequence[int]) -> float | None:
    """Return how much memory each inference keeps for good, or None when no leak can be told.

    Args:
        memory_bytes: anonymous resident memory after each round, the warm-up round first.
        inferences: how many inferences each round made; the same length.

    It is a leak when memory grew in every stretch, four to seven of equally many rounds, by 512 KiB in all and by 64
    bytes an inference.
    """
    size = (len(memory_bytes) - 1) // _STRETCHES
    made = sum(inferences[1:])
    if size < 1 or made == 0:
        return None
    if min(after - before for before, after in pairwise(memory_bytes[::size])) <= 0:
        return None
    total = memory_bytes[-1] - memory_bytes[0]
    each = total / made
    return each if total >= _MIN_GROWTH_BYTES and each >= _MIN_BYTES_PER_INFERENCE else None


def goes_on(leaked_bytes: float, grown_bytes: int, inferences: int) -> bool:
    """Return whether what looked like a leak of so many bytes an inference grew on, in so many inferences after."""
    return inferences > 0 and grown_bytes >= _GOES_ON * leaked_bytes * inferences
