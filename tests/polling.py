"""Waiting in tests: poll with a deadline, never sleep a guessed time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["wait_until"]

T = TypeVar("T")


def wait_until(probe: Callable[[], T], timeout_s: float, what: str, period_s: float = 0.05) -> T:
    """Return the first truthy answer of `probe`.

    Raises:
        AssertionError: when there was none within `timeout_s`; says what was waited for and the last answer.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        answer = probe()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s:g} s in vain until {what}; last answer: {answer!r}")
        time.sleep(period_s)
