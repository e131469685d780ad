"""Starts and ends that give way: a worker begins with only that part of the processor which nobody else wants.

A start computes for a third of a second (interpreter, numpy, runtime, self-test), and the kernel lets a thread that
wakes wait up to its slice, 3 ms, for one that computes: the requests of the version that serves meanwhile. A thread
under SCHED_IDLE (sched(7)) is preempted at once instead. A worker starts so when another one of its model serves; on a
board that has nothing idle it does no longer than `LIMIT_S`. A worker that has answered its last request ends so, too:
to give its memory back takes the kernel milliseconds.

The policy is the process's own, and so is what this module knows: whether it gives way now.
"""

from __future__ import annotations

import contextlib
import os
import threading

__all__ = ["LIMIT_S", "OPTION", "begin", "begin_for", "end"]

OPTION = "--give-way"
LIMIT_S = 2.0  # with both cores taken a start gets 0.3 % of one, and the next version shall come all the same

_ended = threading.Event()
_ended.set()


def begin() -> None:
    """Give way from now on, in all threads and those to come, until `end`.

    Nothing happens where the kernel would not let the process come back: that takes RLIMIT_NICE of 20, `LimitNICE=+0`
    in the unit, or CAP_SYS_NICE.
    """
    if not _may_come_back():
        return
    _ended.clear()
    for number in _threads():
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.sched_setscheduler(number, os.SCHED_IDLE, os.sched_param(0))
    threading.Thread(target=_end_late, name="giving way", daemon=True).start()


def begin_for(child: int) -> None:
    """Let a child that was told the option give way before its interpreter has started, where it may come back."""
    if _may_come_back():
        with contextlib.suppress(OSError):  # it has ended already
            os.sched_setscheduler(child, os.SCHED_IDLE, os.sched_param(0))


def end() -> None:
    """Compete again, in every thread; before a child is started, for it would inherit giving way."""
    if _ended.is_set():
        return
    while idle := [number for number in _threads() if _policy(number) == os.SCHED_IDLE]:
        for number in idle:
            with contextlib.suppress(ProcessLookupError):  # it has ended
                os.sched_setscheduler(number, os.SCHED_OTHER, os.sched_param(0))
    _ended.set()


def _end_late() -> None:
    if not _ended.wait(LIMIT_S):
        end()


def _threads() -> list[int]:
    with os.scandir("/proc/self/task") as entries:  # not pathlib: it would be loaded before imports.py keeps things out
        return [int(entry.name) for entry in entries]


def _policy(thread: int) -> int | None:
    with contextlib.suppress(ProcessLookupError):
        return os.sched_getscheduler(thread)
    return None


def _may_come_back() -> bool:
    """Return whether it can be undone, after trying it on a thread that ends."""
    found: list[bool] = []

    def attempt() -> None:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
            found.append(True)

    trial = threading.Thread(target=attempt, name="trial", daemon=True)
    trial.start()
    trial.join()
    return bool(found)
