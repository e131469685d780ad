"""The versions that a race's result depends on, as this start of the agent finds them. Imports no runtime."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata

from regatta_protocol.measurement import BoardFacts

__all__ = ["versions_here"]

_RUNTIMES = ("ai-edge-litert", "tflite-runtime")


def versions_here(board: BoardFacts) -> Mapping[str, str]:
    """Return the version of every runtime that is installed, of the board's drivers, and of the kernel.

    A runtime that is installed and yet cannot run counts too: a race found that out, and need not find it out again.
    """
    found = dict(board.drivers)
    for name in _RUNTIMES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if board.kernel is not None:
        found["kernel"] = board.kernel
    return found
