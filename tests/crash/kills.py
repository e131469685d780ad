"""Layer A: SIGKILL. At the entry of every call that changes the disk, and at random moments.

What a kill leaves is what the file system had taken up: all that was written is there. That is the kernel's promise
for a process that ends; for a power cut see cuts.py.
"""

from __future__ import annotations

import os
import signal
import time
from random import Random

from crash.case import Case, LabError
from crash.forks import Tell, fork
from crash.heard import Heard, Violation

__all__ = ["Kills", "RandomKills"]

_RANDOM_POINTS = 100_000  # so many moments a story can be told apart


class Kills:
    """A story's kills, by number: one for each call that changes the disk."""

    def __init__(self, case: Case) -> None:
        self._case = case
        calls = case.recording.calls
        self._names = [call.name for call in calls]
        self._at = [index for index, call in enumerate(calls) if call.changes_the_disk]

    def __len__(self) -> int:
        return len(self._at)

    def hit(self, number: int) -> str | None:
        """Kill the story at the point and start again; return the broken promise, or None."""
        case, at = self._case, self._at[number]
        run = case.run(lambda shim: shim.kill_at(at))
        if run.ended.status != -signal.SIGKILL:
            raise LabError(f"{case}, kill {number}: the kill did not happen: {run.ended.error or run.ended.status}")
        if [call.name for call in run.calls] != self._names[:at]:
            raise LabError(f"{case}, kill {number}: the story made other calls than when it was recorded")
        try:
            heard = case.heard(run)
        except Violation as err:
            return str(err)
        return case.come_back(heard)


class RandomKills:
    """A story's kills at moments drawn at random. The same number is the same delay, not the very same moment."""

    def __init__(self, case: Case) -> None:
        self._case = case
        began = time.perf_counter()
        case.lay_out()
        ended = fork(case.story).join()
        if ended.status != 0:
            raise LabError(f"{case} does not come to its end by itself: {ended.error}")
        self._takes_s = time.perf_counter() - began

    def __len__(self) -> int:
        return _RANDOM_POINTS

    def hit(self, number: int) -> str | None:
        """Kill the story after the delay of this number; return the broken promise, or None."""
        case = self._case
        delay_s = Random(f"{case.seed} {number}").uniform(0.0, self._takes_s)
        case.lay_out()

        def work(tell: Tell) -> None:
            tell("begun")
            case.story(tell)

        victim = fork(work)
        victim.told.recv(1, 2)  # MSG_PEEK: it has begun
        time.sleep(delay_s)
        os.kill(victim.pid, signal.SIGKILL)
        told = [news for news in victim.join().told if news[0] != "begun"]
        try:
            heard = Heard().hear_all(case.before).hear_all(told)
        except Violation as err:
            return str(err)
        return case.come_back(heard)
