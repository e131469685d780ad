"""Small bounded reads of /proc, /sys and device trees under a configurable root: an unreadable file is None."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

__all__ = ["entries", "read_number", "read_text"]

_LIMIT_BYTES = 65_536


def read_text(path: Path) -> str | None:
    """Return the file's text, without NULs and blanks at its ends; None when it cannot be read or is empty."""
    try:
        with path.open("rb") as file:
            data = file.read(_LIMIT_BYTES)
    except OSError:
        return None
    return data.decode("utf-8", "replace").strip("\0 \n\t") or None


def read_number(path: Path) -> int | None:
    """Return the file's integer, or None."""
    text = read_text(path)
    try:
        return None if text is None else int(text)
    except ValueError:
        return None


def entries(folder: Path, pattern: str) -> Iterable[Path]:
    """Return the paths in `folder` that match, sorted; none when it is absent or closed to us."""
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return []
