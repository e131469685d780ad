"""Ends this process when the loop has not turned for long, so that whoever supervises it starts it again.

systemd's watchdog does the same from outside, where there is one; under another supervisor, in a container or where the
unit was changed nobody would. It is the kernel's interval timer, put off at every turn: it needs no thread, no memory
and no lock of a process that may be short of any of them. What it leaves is the stack of every thread in the log.

Nothing is cleaned up: what a kill leaves is what the agent starts from at any time (docs/crashlab.md).
"""

from __future__ import annotations

import faulthandler
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Alarm", "armed"]

# Above systemd's 60 s, which says more; the longest turns (a full inbox, a card that syncs for seconds) take some 10 s.
_STUCK_S = 90.0


class Alarm:
    """Put off by the loop, and by nobody else; `stuck_s` None never ends anything."""

    def __init__(self, stuck_s: float | None = None) -> None:
        self._stuck_s = stuck_s

    def put_off(self) -> None:
        """Let the whole time begin anew."""
        if self._stuck_s is not None:
            signal.setitimer(signal.ITIMER_REAL, self._stuck_s)


@contextmanager
def armed(stuck_s: float = _STUCK_S) -> Iterator[Alarm]:
    """Arm the alarm for a while. For the main thread of a process that is the loop's alone: it takes SIGALRM."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    if sys.stderr is not None:  # as with 2>&-
        # Written without Python's lock and memory, then passed on to the default, which ends the process.
        faulthandler.register(signal.SIGALRM, file=sys.stderr, all_threads=True, chain=True)
    alarm = Alarm(stuck_s)
    alarm.put_off()
    try:
        yield alarm
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.unregister(signal.SIGALRM)
