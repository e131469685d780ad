"""What the running agent leaves for `regatta-agent status`: a small file in the run folder, and a lock on the state.

The lock tells for sure whether an agent runs on a state folder: the kernel lets it go when the process ends.
"""

from __future__ import annotations

import fcntl
import logging
import os
from pathlib import Path

from regatta_protocol.codec import decode, encode
from regatta_protocol.durable import read_bounded
from regatta_protocol.errors import Misuse, RegattaError
from regatta_protocol.wire import Wire

__all__ = ["AgentStatus", "StateLock", "StatusFile", "is_running", "read_status"]

logger = logging.getLogger(__name__)

_MAX_STATUS_BYTES = 65_536


class AgentStatus(Wire):
    """What the agent says of itself."""

    pid: int
    boot: str
    started_at: float
    online: bool
    offline: str | None = None  # why the broker could not be reached, of the last try
    offline_since_s: float | None = None  # monotonic, of this boot of the board: no clock that is set moves it
    refused: str | None = None  # why the last desired state was not taken up


class StatusFile:
    """`<run_dir>/agent.json`: written when something changes, not durable (a run folder lies in memory)."""

    def __init__(self, run_dir: Path, boot: str, started_at: float) -> None:
        self._path = run_dir / "agent.json"
        self._boot = boot
        self._started_at = started_at
        self._said: AgentStatus | None = None

    def say(
        self, online: bool, refused: str | None, offline: str | None = None, offline_since_s: float | None = None
    ) -> None:
        """Write the status if it changed; a failure costs only the file."""
        status = AgentStatus(
            pid=os.getpid(),
            boot=self._boot,
            started_at=self._started_at,
            online=online,
            offline=offline,
            offline_since_s=offline_since_s,
            refused=refused,
        )
        if status == self._said:
            return
        fresh = self._path.with_name(".agent.json.new")
        try:
            fresh.write_bytes(encode(status))
            fresh.replace(self._path)
        except OSError as err:
            logger.debug("event=status_not_written error=%s", err)
            return
        self._said = status

    def clear(self) -> None:
        """Take the file away."""
        self._path.unlink(missing_ok=True)


class StateLock:
    """Held by the agent that owns a state folder."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "lock"
        self._descriptor: int | None = None

    def take(self) -> None:
        """Take the lock.

        Raises:
            Misuse: when another agent has it.
            OSError: when it is not there and cannot be made.
        """
        try:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:  # a folder that takes nothing still has the lock of the last start
            self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as err:
            self.release()
            raise Misuse(
                f"another regatta-agent runs on {self._path.parent}: stop it, or give --state-dir another folder"
            ) from err

    def release(self) -> None:
        """Let the lock go. May be called twice."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def is_running(state_dir: Path) -> bool:
    """Return whether an agent holds the lock of the state folder."""
    lock = StateLock(state_dir)
    if not (state_dir / "lock").exists():
        return False
    try:
        lock.take()
    except Misuse:
        return True
    except OSError:
        return False
    lock.release()
    return False


def read_status(run_dir: Path) -> AgentStatus | None:
    """Return what the agent last said of itself, or None."""
    try:
        return decode(AgentStatus, read_bounded(run_dir / "agent.json", _MAX_STATUS_BYTES))
    except (OSError, RegattaError):
        return None
