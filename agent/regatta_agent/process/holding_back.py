"""Longer and longer pauses before a service that keeps failing starts again, where systemd itself makes none.

RestartSteps is systemd's from 254 on; Debian 12 has 252, and starts what fails every 2 s for ever. How often that was
in a row lies in the service's run folder, which the unit lets a restart keep and a boot of the board does not.
Whoever starts the agent in a terminal waits for nothing.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from regatta_provisioning.notify import Notifier

__all__ = ["forgive", "hold_back"]

logger = logging.getLogger(__name__)

_FREE = 3  # starts at once: a crash is to cost seconds
_BASE_S, _CAP_S = 2.0, 300.0  # as RestartMaxDelaySec
_SOUND_S = 900.0  # who ran for so long does not keep failing; more than a pause and a start take
_START_S = 60.0  # TimeoutStartSec


def hold_back(monotonic: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep) -> None:
    """Wait as long as a service that failed so often shall, and take note of this start."""
    path = _path()
    if path is None:
        return
    failures = _failures(path, monotonic())
    wait_s = min(_CAP_S, _BASE_S * 2.0 ** min(failures - _FREE, 30)) if failures >= _FREE else 0.0
    if wait_s:
        logger.warning("event=held_back failures=%d seconds=%.0f", failures, wait_s)
        Notifier.from_environment().starting(wait_s + _START_S)
        sleep(wait_s)
    with contextlib.suppress(OSError):  # a full run folder costs the pause, and no start
        path.write_text(f"{failures + 1} {monotonic():.0f}")


def forgive() -> None:
    """Take note that the service ended as it was asked to."""
    path = _path()
    if path is not None:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _path() -> Path | None:
    """Return where the starts are counted: systemd names the folder."""
    folder = os.environ.get("RUNTIME_DIRECTORY", "")
    return Path(folder) / "starts" if folder and ":" not in folder else None


def _failures(path: Path, now_s: float) -> int:
    """Return how many starts in a row ended soon; what cannot be read counts as none."""
    try:
        with path.open() as file:
            count, _, last_s = file.read(100).partition(" ")
        return int(count) if 0.0 <= now_s - float(last_s) < _SOUND_S else 0
    except (OSError, ValueError):
        return 0
