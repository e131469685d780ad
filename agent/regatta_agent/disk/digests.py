"""Digests of files of any size, computed a bounded piece a turn: no file keeps the loop from turning over.

A digest that is not wanted any more is forgotten, and one that is wanted again goes on where it was, as long as the
file is the same one and was not written to. Nothing here compares digests or deletes files.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from regatta_protocol.ids import Digest

if TYPE_CHECKING:
    from hashlib import _Hash

__all__ = ["TURN_BYTES", "Digests"]

TURN_BYTES = 8 * 1024 * 1024  # a second of a slow SD card (10 MB/s), of the watchdog's 60
_PIECE_BYTES = 1024 * 1024
_MOST_UNFINISHED = 8  # one is under way for each kind of job


@dataclass
class _Progress:
    identity: tuple[int, ...]
    sha256: _Hash = field(default_factory=hashlib.sha256)
    done_bytes: int = 0


class Digests:
    """What a turn may read, and how far each file has come. Used by the loop's thread only."""

    def __init__(self) -> None:
        self._left_bytes = TURN_BYTES
        self._unfinished: dict[Path, _Progress] = {}

    def new_turn(self) -> None:
        """Let as much be read as a turn may."""
        self._left_bytes = TURN_BYTES

    @property
    def waiting(self) -> bool:
        """Whether this turn's share is used up, so that the next turn should come at once."""
        return self._left_bytes <= 0

    def of(self, path: Path) -> Digest | None:
        """Return the SHA-256 of the file, or None when that needs further turns: ask again in the next one.

        Raises:
            OSError: when the file cannot be read.
        """
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            progress = self._progress(path, descriptor)
            while self._left_bytes > 0:
                piece = os.pread(descriptor, min(_PIECE_BYTES, self._left_bytes), progress.done_bytes)
                if not piece:
                    del self._unfinished[path]
                    return Digest(progress.sha256.hexdigest())
                progress.sha256.update(piece)
                progress.done_bytes += len(piece)
                self._left_bytes -= len(piece)
        finally:
            os.close(descriptor)
        return None

    def _progress(self, path: Path, descriptor: int) -> _Progress:
        facts = os.fstat(descriptor)
        identity = (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns)
        progress = self._unfinished.pop(path, None)
        if progress is None or progress.identity != identity:
            progress = _Progress(identity)
        self._unfinished[path] = progress  # the newest last
        while len(self._unfinished) > _MOST_UNFINISHED:
            del self._unfinished[next(iter(self._unfinished))]
        return progress
