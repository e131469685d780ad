"""Calls a function that may hang in a driver, and gives up on it after a while.

Python cannot end a thread: one that hangs is left behind as a daemon, and whoever calls must not call again and again.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TypeVar

from regatta_runtimes.errors import SensorFault

__all__ = ["within"]

T = TypeVar("T")


def within(limit_s: float, what: str, call: Callable[[], T]) -> T:
    """Return what `call` returns; raise what it raises.

    Raises:
        SensorFault: when it has not ended after `limit_s`.
    """
    answers: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put((call(), None))
        except BaseException as err:  # noqa: BLE001 - raised again in the caller's thread
            answers.put((None, err))

    threading.Thread(target=run, name="probe", daemon=True).start()
    try:
        value, error = answers.get(timeout=limit_s)
    except queue.Empty:
        raise SensorFault(f"{what} hangs: no answer within {limit_s:g} s") from None
    if error is not None:
        raise error
    return value  # type: ignore[return-value]  # a T, for there was no error
