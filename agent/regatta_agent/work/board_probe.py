"""What the board is, asked of a child: what looking needs does not stay in this process, and cannot hang it."""

from __future__ import annotations

import logging
import subprocess
import sys

from regatta_agent.config import AgentConfig
from regatta_protocol.codec import decode
from regatta_protocol.errors import Misuse, Rejected
from regatta_protocol.measurement import BoardFacts

__all__ = ["probe_board_apart"]

logger = logging.getLogger(__name__)

_PROBE_S = 30.0  # Python's start from a cold SD card takes seconds; reading /sys takes some 10 ms


def probe_board_apart(config: AgentConfig) -> BoardFacts:
    """Return what the board is; a probe that fails costs its facts, not the start.

    Raises:
        Misuse: when a delegate file of the settings is wrong, for that would fail every race.
    """
    argv = [sys.executable, "-m", "regatta_runtimes.board.probe", str(config.sysroot), *map(str, config.delegate_files)]
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PROBE_S, check=False)
        if done.returncode == 0:
            return decode(BoardFacts, done.stdout)
        reason = done.stderr.decode(errors="replace").strip()[-1000:]
    except (OSError, subprocess.TimeoutExpired, Rejected) as err:
        logger.error("event=board_unknown sysroot=%s error=%s", config.sysroot, err)
        return BoardFacts()
    if done.returncode == Rejected.exit_code:
        raise Misuse(f"delegate_files: {reason}")
    logger.error("event=board_unknown sysroot=%s error=%s", config.sysroot, reason)
    return BoardFacts()
