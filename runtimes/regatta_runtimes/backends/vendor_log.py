"""What a vendor's library prints while it opens a model: the only place where some say which device they chose.

Standard error is taken in as a file descriptor, for native code writes past Python. What was taken in is passed on at
the end, unless the process dies before: then its last words are lost.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["VendorLog", "taken_in"]

_MAX_BYTES = 262_144  # LiteRT prints 10 KB at its worst
_CAUSE = re.compile(r"^(?:└|E\d{4} \S+\s+\d+ [\w.]+:\d+\]|.*?\bERROR:)\s*(?:\[[^\]]*\]\s*)?(.*)$")


class VendorLog:
    """The text, once it is all there."""

    def __init__(self) -> None:
        self.text = ""

    def causes(self) -> str:
        """Return what the lines of errors say, alike ones once, on one line."""
        found = (match[1].strip() for line in self.text.splitlines() if (match := _CAUSE.match(line)))
        return "; ".join(dict.fromkeys(cause for cause in found if cause))[:500]


@contextmanager
def taken_in() -> Iterator[VendorLog]:
    """Take in what is written to standard error meanwhile."""
    log = VendorLog()
    kept, file = os.dup(2), os.memfd_create("vendor-log", os.MFD_CLOEXEC)
    os.dup2(file, 2)
    try:
        yield log
    finally:
        os.dup2(kept, 2)
        data = os.pread(file, _MAX_BYTES, 0)
        log.text = data.decode("utf-8", "replace")
        os.write(2, data)
        os.close(file)
        os.close(kept)
