"""The system shared-memory extension: regions that clients register, read and written by copying.

A region is a POSIX shared-memory object, so a file under /dev/shm. It is never mapped: a mapping of an object that its
client makes smaller kills the process that touches it (SIGBUS), while pread only comes back short.

Requests are read and answered on the engine's threads while the loop registers and unregisters, hence the lock. The
worker may open what its user may: a client gives it access by the object's owner, group and mode.
"""

from __future__ import annotations

import os
import re
import stat
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from regatta_protocol.errors import Rejected

__all__ = ["MAX_REGIONS", "Region", "RegionBody", "Regions"]

MAX_REGIONS = 64  # of one worker; each holds a file descriptor
_MAX_NAME = 255
_KEY = re.compile(r"/?[^/\0]{1,254}")
_FOLDER = Path("/dev/shm")  # noqa: S108 - where shm_open(3) of glibc and musl keeps its objects


class RegionBody(BaseModel):
    """The body of a registration."""

    model_config = ConfigDict(extra="ignore", strict=True)

    key: str = Field(min_length=1, max_length=255)
    offset: int = Field(default=0, ge=0, le=1 << 62)
    byte_size: int = Field(ge=1, le=1 << 62)


@dataclass(frozen=True)
class Region:
    """A registered region: `byte_size` bytes from `offset` of the object `key`."""

    name: str
    key: str
    offset: int
    byte_size: int
    fd: int


class Regions:
    """The registered regions of one worker."""

    def __init__(self, folder: Path = _FOLDER) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._regions: dict[str, Region] = {}
        self.limit_bytes = 0  # of one tensor; set when the model is known

    def register(self, name: str, body: RegionBody) -> None:
        """Keep a region under a name.

        Raises:
            Rejected: when the name is taken, too many are, or the object is absent, too small or closed to the worker.
        """
        if not 1 <= len(name) <= _MAX_NAME:
            raise Rejected(f"the name of a region has 1 to {_MAX_NAME} characters")
        with self._lock:
            if name in self._regions:
                raise Rejected(f"region {name!r} is registered already: unregister it first")
            if len(self._regions) >= MAX_REGIONS:
                self._forget_removed()
            if len(self._regions) >= MAX_REGIONS:
                raise Rejected(f"{MAX_REGIONS} regions are registered, which is the limit: unregister some")
            fd = self._open(body.key)
            region = Region(name, body.key, body.offset, body.byte_size, fd)
            try:
                _check_there(region)
            except Rejected:
                os.close(fd)
                raise
            self._regions[name] = region

    def unregister(self, name: str | None) -> None:
        """Forget a region, or all of them; one that is not registered is nothing to forget."""
        with self._lock:
            for one in list(self._regions) if name is None else [name]:
                region = self._regions.pop(one, None)
                if region is not None:
                    os.close(region.fd)

    def status(self, name: str | None) -> list[dict[str, Any]]:
        """Return the protocol's description of a region, or of all.

        Raises:
            Rejected: when it is not registered.
        """
        with self._lock:
            chosen = list(self._regions.values()) if name is None else [self._get(name)]
        return [{"name": one.name, "key": one.key, "offset": one.offset, "byte_size": one.byte_size} for one in chosen]

    def read(self, name: str, offset: int, size: int) -> memoryview:
        """Return a copy of `size` bytes from `offset` of the region.

        Raises:
            Rejected: when it is not registered, they do not lie in it, or the object has been removed or made smaller.
        """
        if size > self.limit_bytes:
            raise Rejected(f"{size} bytes are over the limit of {self.limit_bytes}, which this model's inputs set")
        with self._lock:
            region = self._get(name)
            _check_range(region, offset, size)
            _check_there(region)
            data = bytearray(size)
            got = os.preadv(region.fd, [data], region.offset + offset)
        if got != size:
            raise Rejected(_shrunk(region, region.offset + offset + got))
        return memoryview(data)

    def write(self, name: str, offset: int, size: int, data: bytes) -> None:
        """Put `data` at `offset` of the region, where `size` bytes are meant for it.

        Raises:
            Rejected: as read, and when `data` is more than `size`.
        """
        if len(data) > size:
            raise Rejected(f"the output has {len(data)} bytes and shared_memory_byte_size is {size}: make room for it")
        with self._lock:
            region = self._get(name)
            _check_range(region, offset, size)
            _check_there(region)
            try:
                written = os.pwrite(region.fd, data, region.offset + offset)
            except OSError as err:
                raise Rejected(f"region {name!r} cannot be written: {err.strerror}") from err
        if written != len(data):
            raise Rejected(f"only {written} of {len(data)} bytes could be written to region {name!r}: memory is full")

    def _get(self, name: str) -> Region:
        region = self._regions.get(name)
        if region is None:
            raise Rejected(
                f"region {name[:80]!r} is not registered with this worker: register it, after a swap or restart again"
            )
        return region

    def _forget_removed(self) -> None:
        """Drop the regions whose object was removed: their clients have gone without unregistering."""
        for name, region in list(self._regions.items()):
            if os.fstat(region.fd).st_nlink == 0:
                os.close(self._regions.pop(name).fd)

    def _open(self, key: str) -> int:
        if not _KEY.fullmatch(key) or key.strip("/") in (".", ".."):
            raise Rejected(f"{key[:80]!r} is no key of a shared-memory object: write /NAME without another slash")
        path = self._folder / key.removeprefix("/")
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError as err:
            raise Rejected(f"there is no shared-memory object {key!r}: make it first") from err
        except OSError as err:
            raise Rejected(
                f"shared-memory object {key!r} cannot be opened: {err.strerror}: give the worker's user or group "
                "access to it for reading and writing"
            ) from err
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise Rejected(f"{key!r} is no shared-memory object")
        return fd


def _check_range(region: Region, offset: int, size: int) -> None:
    if offset < 0 or size < 0 or offset + size > region.byte_size:
        raise Rejected(
            f"bytes {offset} to {offset + size} do not lie in region {region.name!r} of {region.byte_size} bytes"
        )


def _check_there(region: Region) -> None:
    """Refuse a region whose object was removed, or ends before the region does."""
    found = os.fstat(region.fd)
    if found.st_nlink == 0:
        raise Rejected(f"the object {region.key!r} of region {region.name!r} was removed: register the region again")
    if found.st_size < region.offset + region.byte_size:
        raise Rejected(_shrunk(region, found.st_size))


def _shrunk(region: Region, size: int) -> str:
    return (
        f"region {region.name!r} is to have {region.byte_size} bytes from {region.offset} of object {region.key!r}, "
        f"which has {size} bytes now: make it larger, or register less of it"
    )
