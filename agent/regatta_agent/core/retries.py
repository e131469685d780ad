"""When a placement that failed is tried again: full jitter, a cap, and so many times a day. Pure.

The times of past retries are all that is remembered. They are kept on disk by the agent, so that a device that starts
again and again does not begin its back-off anew each time; with a day they are forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from regatta_protocol.backoff import backoff_s

__all__ = ["DAY_S", "RetryLimits", "next_retry", "of_the_last_day"]

DAY_S = 86_400.0


@dataclass(frozen=True)
class RetryLimits:
    base_s: float = 2.0
    cap_s: float = 1800.0
    per_day: int = 24


def of_the_last_day(retried: Sequence[float], now_s: float) -> tuple[float, ...]:
    """Return the retries that still count; one in the future is of a clock that jumped back, and counts no more."""
    return tuple(time for time in retried if now_s - DAY_S < time <= now_s)


def next_retry(retried: Sequence[float], now_s: float, rng: Random, limits: RetryLimits) -> float:
    """Return when to try next: a wait in [0, min(cap, base · 2^retries)), or later when the day's share is used up."""
    recent = of_the_last_day(retried, now_s)
    if len(recent) >= limits.per_day:
        return min(recent[-limits.per_day :]) + DAY_S
    return now_s + backoff_s(len(recent), limits.base_s, limits.cap_s, rng)
