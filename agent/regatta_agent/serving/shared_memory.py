"""The system shared-memory extension: regions that clients register, read and written by copying.

A region is a POSIX shared-memory object, so a file under /dev/shm. It is never mapped: a mapping of an object that its
client makes smaller kills the process that touches it (SIGBUS), while pread only comes back short.

All workers of a model know the same regions (registry.py); this one opens the object of a region when it first needs
it. Requests are read and answered on the engine's threads while the loop registers and unregisters, hence the lock. The
worker may open what its user may: a client gives it access by the object's owner, group and mode.
"""

from __future__ import annotations

import os
import re
import stat
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from regatta_agent.serving.registry import Entry, Registry, Stamp
from regatta_protocol.bounds import Bounds
from regatta_protocol.errors import Rejected

__all__ = ["MAX_REGIONS", "RegionBody", "Regions"]

MAX_REGIONS = 64  # of one model; each holds a file descriptor of its worker
_MAX_NAME = 255
_KEY = re.compile(r"/?[^/\0]{1,254}")
_FOLDER = Path("/dev/shm")  # noqa: S108 - where shm_open(3) of glibc and musl keeps its objects


@dataclass(frozen=True, kw_only=True)
class RegionBody:
    """The body of a registration."""

    key: Annotated[str, Bounds(min_length=1, max_length=255)]
    offset: Annotated[int, Bounds(ge=0, le=1 << 62)] = 0
    byte_size: Annotated[int, Bounds(ge=1, le=1 << 62)]


@dataclass(frozen=True)
class _Opened:
    """A region whose object this worker has open; `stamp` is of the registration that it was opened for."""

    entry: Entry
    stamp: Stamp | None
    fd: int


class Regions:
    """The registered regions of one model, as one worker uses them."""

    def __init__(self, registry: Registry, folder: Path = _FOLDER) -> None:
        self._registry = registry
        self._folder = folder
        self._lock = threading.Lock()
        self._opened: dict[str, _Opened] = {}
        self.limit_bytes = 0  # of one tensor; set when the model is known

    def register(self, name: str, body: RegionBody) -> None:
        """Keep a region under a name.

        Raises:
            Rejected: when the name is taken, too many are, or the object is absent, too small or closed to the worker.
        """
        if not 1 <= len(name) <= _MAX_NAME:
            raise Rejected(f"the name of a region has 1 to {_MAX_NAME} characters")
        with self._lock:
            if self._registry.stamp(name) is not None:
                raise Rejected(_taken(name))
            self._make_room()
            fd = self._open(body.key)
            try:
                found = os.fstat(fd)
                entry = Entry(
                    name=name,
                    key=body.key,
                    offset=body.offset,
                    byte_size=body.byte_size,
                    device=found.st_dev,
                    inode=found.st_ino,
                )
                _check_there(entry, found)
                self._add(entry)
            except BaseException:
                os.close(fd)
                raise
            self._keep(_Opened(entry, self._registry.stamp(name), fd))

    def unregister(self, name: str | None) -> None:
        """Forget a region, or all of them; one that is not registered is nothing to forget."""
        with self._lock:
            registered = [name] if name is not None else [entry.name for entry in self._registry.all()]
            for one in registered:
                self._registry.remove(one)
            for one in registered if name is not None else list(self._opened):
                self._close(one)

    def status(self, name: str | None) -> list[dict[str, Any]]:
        """Return the protocol's description of a region, or of all.

        Raises:
            Rejected: when it is not registered.
        """
        found = self._registry.find(name) if name is not None else None
        if name is not None and found is None:
            raise Rejected(_not_registered(name))
        chosen = self._registry.all() if found is None else [found]
        return [{"name": one.name, "key": one.key, "offset": one.offset, "byte_size": one.byte_size} for one in chosen]

    def read(self, name: str, offset: int, size: int) -> memoryview:
        """Return a copy of `size` bytes from `offset` of the region.

        Raises:
            Rejected: when it is not registered, they do not lie in it, or the object has been removed or made smaller.
        """
        if size > self.limit_bytes:
            raise Rejected(f"{size} bytes are over the limit of {self.limit_bytes}, which this model's inputs set")
        with self._lock:
            region = self._get(name, offset, size)
            data = bytearray(size)
            got = os.preadv(region.fd, [data], region.entry.offset + offset)
        if got != size:
            raise Rejected(_shrunk(region.entry, region.entry.offset + offset + got))
        return memoryview(data)

    def write(self, name: str, offset: int, size: int, data: bytes) -> None:
        """Put `data` at `offset` of the region, where `size` bytes are meant for it.

        Raises:
            Rejected: as read, and when `data` is more than `size`.
        """
        if len(data) > size:
            raise Rejected(f"the output has {len(data)} bytes and shared_memory_byte_size is {size}: make room for it")
        with self._lock:
            region = self._get(name, offset, size)
            try:
                written = os.pwrite(region.fd, data, region.entry.offset + offset)
            except OSError as err:
                raise Rejected(f"region {name!r} cannot be written: {err.strerror}") from err
        if written != len(data):
            raise Rejected(f"only {written} of {len(data)} bytes could be written to region {name!r}: memory is full")

    def _get(self, name: str, offset: int, size: int) -> _Opened:
        """Return the region as it is registered now, with its object open, that has `size` bytes from `offset`."""
        stamp, region = self._registry.stamp(name), self._opened.get(name)
        if region is None or region.stamp != stamp:
            self._close(name)
            entry = self._registry.find(name)
            if entry is None:
                raise Rejected(_not_registered(name))
            region = _Opened(entry, stamp, self._open(entry.key))
            self._keep(region)
        entry = region.entry
        if offset < 0 or size < 0 or offset + size > entry.byte_size:
            raise Rejected(
                f"bytes {offset} to {offset + size} do not lie in region {name!r} of {entry.byte_size} bytes"
            )
        _check_there(entry, os.fstat(region.fd))
        return region

    def _keep(self, region: _Opened) -> None:
        if len(self._opened) >= MAX_REGIONS:  # some of these other workers were told to forget
            for name in list(self._opened):
                self._close(name)
        self._opened[region.entry.name] = region

    def _close(self, name: str) -> None:
        region = self._opened.pop(name, None)
        if region is not None:
            os.close(region.fd)

    def _make_room(self) -> None:
        """Drop regions whose object was removed when there are too many: their clients have gone without a word."""
        entries = self._registry.all()
        if len(entries) >= MAX_REGIONS:
            gone = [entry for entry in entries if self._is_gone(entry)]
            for entry in gone:
                self._registry.remove(entry.name)
                self._close(entry.name)
            if len(entries) - len(gone) >= MAX_REGIONS:
                raise Rejected(f"{MAX_REGIONS} regions are registered, which is the limit: unregister some")

    def _is_gone(self, entry: Entry) -> bool:
        try:
            found = (self._folder / entry.key.removeprefix("/")).stat()
        except OSError:
            return True
        return (found.st_dev, found.st_ino) != (entry.device, entry.inode)

    def _add(self, entry: Entry) -> None:
        try:
            self._registry.add(entry)
        except FileExistsError as err:
            raise Rejected(_taken(entry.name)) from err
        except OSError as err:
            raise Rejected(f"region {entry.name!r} cannot be kept: {err.strerror}: free some space") from err

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


def _check_there(entry: Entry, found: os.stat_result) -> None:
    """Refuse a region whose object was removed, or ends before the region does."""
    if found.st_nlink == 0 or (found.st_dev, found.st_ino) != (entry.device, entry.inode):
        raise Rejected(f"the object {entry.key!r} of region {entry.name!r} was removed: register the region again")
    if found.st_size < entry.offset + entry.byte_size:
        raise Rejected(_shrunk(entry, found.st_size))


def _shrunk(entry: Entry, size: int) -> str:
    return (
        f"region {entry.name!r} is to have {entry.byte_size} bytes from {entry.offset} of object {entry.key!r}, "
        f"which has {size} bytes now: make it larger, or register less of it"
    )


def _not_registered(name: str) -> str:
    return f"region {name[:80]!r} is not registered: register it first"


def _taken(name: str) -> str:
    return f"region {name!r} is registered already: unregister it first"
