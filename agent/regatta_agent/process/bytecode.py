"""Lean bytecode, without docstrings, asserts and columns: which there is, and how a process comes to run with it.

`regatta-agent install` compiles it ahead, as root (compiler.py), into a folder that the unit names in REGATTA_BYTECODE.
There `regatta-agent run` starts itself anew with it, and starts its workers so. It belongs to one installation: after
Python or any package was upgraded it is left alone until it is compiled again, and all runs as pip compiled it, which
costs memory (docs/footprint.md) and nothing else. A single source that has changed is compiled by Python, in memory.
Tracebacks keep their lines, and command lines their help, for those run without it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import site
import sys
from pathlib import Path

__all__ = ["FOLDER_VARIABLE", "flags_for", "inherited_flags", "installation", "start_lean"]

logger = logging.getLogger(__name__)

FOLDER_VARIABLE = "REGATTA_BYTECODE"
_FLAGS = ("-OO", "-X", "no_debug_ranges")  # Python 3.10 does not know the last, and passes over it
_PREFIX = "pycache_prefix"


def installation() -> str:
    """Return a name for this Python and all that is installed for it; another one after any upgrade."""
    from zlib import crc32  # no secret: it only saves a search in vain, for Python checks each file by itself

    found = [
        f"{entry.path} {entry.stat().st_mtime_ns}"
        for folder in map(Path, site.getsitepackages())
        if folder.is_dir()
        for entry in os.scandir(folder)
        if entry.name.endswith((".dist-info", ".egg-info"))
    ]
    return f"{crc32(repr((sys.version, sorted(found))).encode()):08x}"


def flags_for(prefix: Path) -> tuple[str, ...]:
    """Return the flags of an interpreter that runs with, or compiles, the lean bytecode below `prefix`."""
    return (*_FLAGS, "-X", f"{_PREFIX}={prefix}")


def inherited_flags() -> tuple[str, ...]:
    """Return the flags with which a child runs as lean as this process: none when this is not, or was replaced."""
    given = sys._xoptions.get(_PREFIX)
    if sys.flags.optimize < 2 or not isinstance(given, str):
        return ()
    prefix = Path(given)
    return flags_for(prefix) if _compiled(prefix.parent) == prefix else ()


def start_lean() -> None:
    """Start this very program anew, in this process, where REGATTA_BYTECODE names what was compiled for it.

    Returns where nothing was, and in the program that was so started.
    """
    folder = os.environ.pop(FOLDER_VARIABLE, None)
    if folder is None:
        return
    prefix = _compiled(Path(folder))
    if prefix is None:
        logger.warning("event=not_lean folder=%s remedy='regatta-agent install' compiles for what is installed", folder)
        return
    with contextlib.suppress(OSError):  # it runs as well without
        os.execv(sys.executable, [sys.executable, *flags_for(prefix), *sys.orig_argv[1:]])  # noqa: S606 - as it was started


def _compiled(folder: Path) -> Path | None:
    """Return where in `folder` the bytecode of this installation lies, or None."""
    try:
        prefix = folder / installation()
        return prefix if prefix.is_dir() else None
    except OSError:  # packages are being replaced
        return None
