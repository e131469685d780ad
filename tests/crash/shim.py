"""The crash lab's view of the disk: shim.c built, loaded and spoken to; and the calls that it logged.

The library must be there before the interpreter starts, so a program that needs it starts itself again (`reload`).
"""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

__all__ = ["CHANGES", "Call", "Intent", "Kind", "Shim", "build", "calls_in", "is_loaded", "reload"]

_SOURCE = Path(__file__).with_name("shim.c")
_LIBRARY = Path(__file__).parents[2] / "build" / "crashlab" / "shim.so"
_RECORD = struct.Struct("=BBHHxxiiI4xqq")  # of shim.c
_KILLED = -9999


class Kind(IntEnum):
    """As in shim.c."""

    OPEN = 0
    WRITE = 1
    PWRITE = 2
    RENAME = 3
    FSYNC = 4
    FDATASYNC = 5
    UNLINK = 6
    RMDIR = 7
    FTRUNCATE = 8
    MKDIR = 9
    SYMLINK = 10
    LINK = 11
    READ = 12
    PREAD = 13


class Intent(IntEnum):
    """What a file is opened for."""

    LOOKS = 0
    WRITES = 1
    CREATES = 2  # or empties


CHANGES = frozenset(Kind) - {Kind.OPEN, Kind.READ, Kind.PREAD}


@dataclass(frozen=True)
class Call:
    """One call below the folder. Its number is its place in the log."""

    kind: Kind
    intent: Intent
    path: str  # of a call by path; what a symbolic link says, or the name before a rename
    other: str  # the second path
    result: int  # minus errno when it failed
    file: int
    offset: int  # of a PWRITE or a WRITE; the new length of a FTRUNCATE
    size: int  # bytes to write; 1 for an OPEN that empties
    data: bytes  # what was written, when that was asked for

    @property
    def failed(self) -> bool:
        return self.result < 0

    @property
    def changes_the_disk(self) -> bool:
        """Whether a kill before it leaves another disk than one after it."""
        return not self.failed and (self.kind in CHANGES or self.intent is Intent.CREATES)

    @property
    def name(self) -> str:
        """Return what it is, the same in every run."""
        return f"{self.kind.name.lower()}{'+' * self.intent}"


class Shim:
    """The loaded library, in this process and its forks."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(str(_LIBRARY))
        self._library.shim_count.restype = ctypes.c_int64
        self._library.shim_failed.restype = ctypes.c_int64

    def begin(self, folder: Path, log: int, *, with_data: bool = False) -> None:
        """Number and log the calls below the folder from now on, into the descriptor `log`."""
        self._library.shim_begin(os.fsencode(folder), log, int(with_data))

    def kill_at(self, number: int) -> None:
        """Kill this process on entry of the call."""
        self._library.shim_kill_at(ctypes.c_int64(number))

    def tear_at(self, number: int) -> None:
        """Let the call, a write, take only the first half."""
        self._library.shim_tear_at(ctypes.c_int64(number))

    def fail(
        self, first: int, stop: int, error: int, kinds: frozenset[Kind], opens: Intent, below: str = ""
    ) -> None:  # fmt: skip
        """Fail the calls from `first` before `stop` that are of these kinds, of opens those that intend so much.

        Args:
            first: number of the first call that may fail.
            stop: of the first that may not.
            error: errno.
            kinds: of the calls, beside OPEN.
            opens: the least intent of an OPEN that fails.
            below: where; empty is everywhere.
        """
        mask = sum(1 << kind for kind in kinds | {Kind.OPEN})
        self._library.shim_fail_below(os.fsencode(below))
        self._library.shim_fail(ctypes.c_int64(first), ctypes.c_int64(stop), error, mask, int(opens))

    def relent(self) -> None:
        """Fail nothing from now on."""
        self.fail(-1, -1, 0, frozenset(), Intent.LOOKS)

    @contextmanager
    def forgiving(self) -> Iterator[None]:
        """Fail nothing meanwhile."""
        self._library.shim_forgive(1)
        try:
            yield
        finally:
            self._library.shim_forgive(0)

    def count(self) -> int:
        """Return how many calls there were."""
        return int(self._library.shim_count())

    def failed(self) -> int:
        """Return how many calls were failed by plan that would change the disk."""
        return int(self._library.shim_failed())

    def end(self) -> None:
        """Let every call pass, unseen."""
        self._library.shim_end()


def calls_in(log: int) -> Iterator[Call]:
    """Yield what was logged, but for a call at whose entry the process was killed."""
    data = os.pread(log, os.fstat(log).st_size, 0)
    at = 0
    while at < len(data):
        kind, intent, path_bytes, other_bytes, result, file, data_bytes, offset, size = _RECORD.unpack_from(data, at)
        at += _RECORD.size
        parts = []
        for length in (path_bytes, other_bytes, data_bytes):
            parts.append(data[at : at + length])
            at += length
        if result != _KILLED:
            path, other, content = parts
            yield Call(
                Kind(kind), Intent(intent), os.fsdecode(path), os.fsdecode(other), result, file, offset, size, content
            )


def build() -> str | None:
    """Build the library unless it is there; return why it cannot be built, or None."""
    if _LIBRARY.exists() and _LIBRARY.stat().st_mtime >= _SOURCE.stat().st_mtime:
        return None
    if shutil.which("gcc") is None:
        return "gcc is not installed"
    _LIBRARY.parent.mkdir(parents=True, exist_ok=True)
    fresh = _LIBRARY.with_suffix(f".{os.getpid()}")
    flags = ["-Wall", "-Wextra", "-Werror", "-O2", "-shared", "-fPIC"]
    built = subprocess.run(["gcc", *flags, "-o", fresh, _SOURCE, "-ldl"], capture_output=True, text=True, check=False)
    if built.returncode != 0:
        return f"shim.c cannot be built: {built.stderr.strip()[-500:]}"
    fresh.replace(_LIBRARY)
    return None


def is_loaded() -> bool:
    """Return whether this process runs over the library."""
    return os.environ.get("LD_PRELOAD") == str(_LIBRARY)


def reload() -> None:
    """Start this program again, over the library. Does not return."""
    sys.stdout.flush()
    environment = {**os.environ, "LD_PRELOAD": str(_LIBRARY)}
    os.execve(sys.executable, [sys.executable, *sys.argv], environment)
