"""Small bounded reads of /proc, /sys and device trees under a configurable root: an unreadable file is None.

A root may be any folder, also one that somebody sent: nothing here raises for what lies in it, blocks on a FIFO, opens
a device, or reads more than 64 KB of a file and 1,024 names of a folder.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Sequence
from pathlib import Path

__all__ = ["entries", "exists", "link_name", "read_number", "read_text"]

_LIMIT_BYTES = 65_536
_MAX_DIGITS = 20  # of any 64-bit number, with its sign
_MAX_ENTRIES = 1024  # the busiest folder that is read here holds a few hundred: PCI devices of a server


def read_text(path: Path) -> str | None:
    """Return the file's text, without NULs and blanks at its ends; None when it cannot be read or is empty."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return None
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            data = os.read(descriptor, _LIMIT_BYTES)
            while 0 < len(data) < _LIMIT_BYTES and (more := os.read(descriptor, _LIMIT_BYTES - len(data))):
                data += more
        finally:
            os.close(descriptor)
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return None
    return data.decode("utf-8", "replace").strip("\0 \n\t") or None


def read_number(path: Path) -> int | None:
    """Return the file's decimal integer, or None."""
    text = read_text(path)
    if text is None or len(text) > _MAX_DIGITS or not text.lstrip("-").isdecimal():
        return None
    try:
        return int(text)
    except ValueError:
        return None


def entries(folder: Path, pattern: str) -> Sequence[Path]:
    """Return the paths in `folder` that match, sorted; none when it is absent or closed to us."""
    try:
        return sorted(itertools.islice(folder.glob(pattern), _MAX_ENTRIES))
    except (OSError, ValueError, RuntimeError):  # RuntimeError: a loop of links, in Python < 3.13
        return []


def exists(path: Path) -> bool:
    """Return whether there is anything at the path; False when that cannot be found out."""
    return os.path.exists(path)  # noqa: PTH110 - Path.exists raises PermissionError


def link_name(path: Path) -> str | None:
    """Return the last part of where a symbolic link leads, such as the driver in `device/driver`; None when it is none.

    Where it leads to need not exist.
    """
    try:
        return path.readlink().name or None
    except (OSError, ValueError):
        return None
