"""How long to wait before the next try: full jitter below an exponential with a cap (AWS Architecture Blog, 2015).

Pure: what tries, how often, and what counts as a try are the caller's.
"""

from __future__ import annotations

from random import Random

__all__ = ["backoff_s"]

_MOST_DOUBLINGS = 30  # 2^30 s are 34 years, and no float overflows


def backoff_s(attempt: int, base_s: float, cap_s: float, chance: Random) -> float:
    """Return a wait in [0, min(cap, base · 2^attempt)) before try number `attempt` (from 0)."""
    return chance.uniform(0.0, min(cap_s, base_s * 2.0 ** min(attempt, _MOST_DOUBLINGS)))
