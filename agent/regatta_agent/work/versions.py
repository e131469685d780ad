"""The versions that a race's result depends on, as this start of the agent finds them. Imports no runtime."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

from regatta_protocol.measurement import BoardFacts

__all__ = ["installed_version", "versions_here"]

_RUNTIMES = ("ai-edge-litert", "tflite-runtime")


def versions_here(board: BoardFacts) -> Mapping[str, str]:
    """Return the version of every runtime that is installed, of the board's drivers, and of the kernel.

    A runtime that is installed and yet cannot run counts too: a race found that out, and need not find it out again.
    """
    found = dict(board.drivers)
    for name in _RUNTIMES:
        version = installed_version(name)
        if version is not None:
            found[name] = version
    if board.kernel is not None:
        found["kernel"] = board.kernel
    return found


def installed_version(distribution: str) -> str | None:
    """Return the version in the name of a distribution's folder of metadata, or None when it is not installed.

    importlib.metadata says the same, and leaves email, zipfile and csv in memory: 1.5 MB of a small process.
    """
    stem = re.escape(distribution.replace("-", "_"))
    pattern = re.compile(rf"{stem}-([^-]+)(-py[0-9.]+)?\.(dist|egg)-info", re.IGNORECASE)  # PEP 427, and Debian's
    for folder in sys.path:
        for entry in sorted(Path(folder).glob("*-info")):
            match = pattern.fullmatch(entry.name)
            if match:
                return match[1]
    return None
