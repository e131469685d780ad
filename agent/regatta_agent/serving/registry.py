"""Which shared-memory regions are registered, on disk: what one worker of a model was told, the others know too.

So a client notices nothing of a swap, of the way back, or of a worker that ended. There is one small file a region,
made and removed in one step each. Nothing is synced: the memory that it speaks of is lost with the kernel as well.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from regatta_protocol.durable import read_bounded
from regatta_protocol.errors import Rejected
from regatta_protocol.plain import read_json, to_json

__all__ = ["Entry", "Registry"]

_MAX_ENTRY_BYTES = 8192
Stamp = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A region: `byte_size` bytes from `offset` of the object `key`.

    Device and inode are the object's, so that another one, made later under the same key, is not taken for it.
    """

    name: str
    key: str
    offset: int
    byte_size: int
    device: int
    inode: int


class Registry:
    """The folder. Any number of workers may use it at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, entry: Entry) -> None:
        """Keep a region.

        Raises:
            FileExistsError: when its name is taken.
            OSError: when it cannot be written.
        """
        self._folder.mkdir(mode=0o700, exist_ok=True)
        fresh = self._folder / f".{os.getpid()}.new"
        try:
            fresh.write_bytes(to_json(entry))
            self._path(entry.name).hardlink_to(fresh)
        finally:
            fresh.unlink(missing_ok=True)

    def find(self, name: str) -> Entry | None:
        """Return the region of that name, or None when there is none."""
        return _read(self._path(name))

    def stamp(self, name: str) -> Stamp | None:
        """Return what tells this registration of a name from another, or None when there is none."""
        try:
            found = self._path(name).stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns

    def remove(self, name: str) -> None:
        """Forget a region, if it is there."""
        self._path(name).unlink(missing_ok=True)

    def all(self) -> list[Entry]:
        """Return every region, in the order of their names."""
        return sorted(self._entries(), key=lambda entry: entry.name)

    def _entries(self) -> Iterator[Entry]:
        with contextlib.suppress(FileNotFoundError):
            for path in self._folder.iterdir():
                entry = None if path.name.startswith(".") else _read(path)
                if entry is not None:
                    yield entry

    def _path(self, name: str) -> Path:
        return self._folder / hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()


def _read(path: Path) -> Entry | None:
    with contextlib.suppress(FileNotFoundError, Rejected):  # removed meanwhile, or of another program's making
        return read_json(Entry, read_bounded(path, _MAX_ENTRY_BYTES), _MAX_ENTRY_BYTES)
    return None
