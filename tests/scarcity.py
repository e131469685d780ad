"""Boards that lack something: a small disk that can fill up, a folder that takes nothing, no file descriptor left."""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["SmallDisk", "no_descriptors", "small_disk"]

_MS_RDONLY, _MS_REMOUNT, _MNT_DETACH = 1, 32, 2
_FILL_BYTES = 65_536


class SmallDisk:
    """A tmpfs of its own, mounted at `path`."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.path = path
        self._filler = path / "filler"
        self._libc = ctypes.CDLL(None, use_errno=True)
        path.mkdir()
        self._mount(0, f"size={size_bytes}")

    def fill(self, left_bytes: int = 0) -> None:
        """Take all space but `left_bytes`."""
        facts = os.statvfs(self.path)
        self._take(facts.f_bavail * facts.f_frsize - left_bytes)

    def _take(self, size_bytes: int) -> None:
        with self._filler.open("ab") as file:
            while size_bytes > 0:
                try:
                    size_bytes -= file.write(b"\0" * min(size_bytes, _FILL_BYTES))
                    file.flush()
                except OSError as err:
                    assert err.errno == errno.ENOSPC
                    return

    def free(self) -> None:
        """Give the space back."""
        self._filler.unlink(missing_ok=True)

    def take_nothing(self, refuse: bool = True) -> None:
        """Let every write fail, or be possible again."""
        self._mount(_MS_REMOUNT | (_MS_RDONLY if refuse else 0), "")

    def remove(self) -> None:
        self._libc.umount2(os.fsencode(self.path), _MNT_DETACH)

    def _mount(self, flags: int, options: str) -> None:
        done = self._libc.mount(b"none", os.fsencode(self.path), b"tmpfs", flags, options.encode())
        if done != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(self.path))


@contextmanager
def small_disk(path: Path, size_bytes: int) -> Iterator[SmallDisk]:
    """Mount a small disk for a while; skips the test where this user may not."""
    try:
        disk = SmallDisk(path, size_bytes)
    except OSError as err:
        pytest.skip(f"no small disk can be mounted here: {err.strerror}")
    try:
        yield disk
    finally:
        disk.remove()


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Let this process open no further file, socket or pipe."""
    gc.collect()  # else what an earlier test left open may give its descriptor back meanwhile
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    next_free = os.open(os.devnull, os.O_RDONLY)
    os.close(next_free)
    taken = [os.open(os.devnull, os.O_RDONLY) for _ in range(64)]  # gaps below the highest one in use
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (next_free, hard))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)
