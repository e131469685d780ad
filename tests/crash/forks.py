"""Work done in forks of this process, which may end at any moment: what they tell, and how they ended.

A fork of a process that has everything imported costs 3 ms, a fresh interpreter 400. What it tells goes over a socket,
a line at a time, so that it is heard even when the next call kills the process.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Ended", "Fork", "Tell", "fork"]

_TOO_LONG_S = 300  # of a second, on a machine with nothing else to do
_TOLD = 600  # characters of a traceback, its end

Tell = Callable[..., None]  # a kind of news and its values, as JSON


@dataclass(frozen=True)
class Ended:
    """How a fork ended, and what it had told."""

    status: int  # negative: by that signal
    told: tuple[list[Any], ...]
    error: str | None  # the end of its traceback


@dataclass(frozen=True)
class Fork:
    """A process that was started."""

    pid: int
    told: socket.socket

    def join(self) -> Ended:
        """Hear it out and wait for its end."""
        with self.told, self.told.makefile("rb") as stream:
            lines = [json.loads(line) for line in stream if line.endswith(b"\n")]
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        error = next((line[1] for line in lines if line[0] == "traceback"), None)
        return Ended(status, tuple(line for line in lines if line[0] != "traceback"), error)


def fork(work: Callable[[Tell], None]) -> Fork:
    """Run `work` in a fork."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid:
        theirs.close()
        return Fork(pid, ours)
    status = 1

    def tell(*news: object) -> None:
        theirs.sendall(json.dumps(news).encode() + b"\n")  # sendto is no call that changes the disk

    try:
        ours.close()
        signal.alarm(_TOO_LONG_S)
        logging.disable()
        work(tell)
        status = 0
    except BaseException:  # noqa: BLE001 - whatever it is, it is said to the parent, and the fork ends here
        tell("traceback", traceback.format_exc()[-_TOLD:].strip().replace("\n", " | "))
    finally:
        os._exit(status)
