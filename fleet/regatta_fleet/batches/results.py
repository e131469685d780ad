"""The folder of outputs that came from devices: `BATCH/DEVICE`, whole or absent, and `BATCH/.DEVICE.part` on its way.

What comes is synced before it counts. How much of a part counts is the database's to say (pulling.py): what a kill or a
power cut left behind that is cut off. The digest of the whole decides whether it gets its name. All of it together is
bounded, and some of the disk is left free.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from regatta_fleet.errors import Conflict, NotFound
from regatta_protocol.durable import make_folder_durably, rename_durably, sync_folder
from regatta_protocol.errors import BadDigest, StorageFull
from regatta_protocol.ids import DeviceId, Digest

__all__ = ["ResultsStore"]

_LIMIT_BYTES = 8 * 1024**3
_RESERVE_BYTES = 512 * 1024**2  # for the database, the broker and models
_READ_BYTES = 1024 * 1024
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class ResultsStore:
    """A folder of outputs. One caller at a time for each output; safe for several over different ones."""

    def __init__(self, folder: Path, limit_bytes: int = _LIMIT_BYTES, reserve_bytes: int = _RESERVE_BYTES) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._reserve_bytes = reserve_bytes

    def prepare(self) -> None:
        """Make the folder."""
        make_folder_durably(self._folder, 0o700)

    def open(self, batch: str, device: DeviceId) -> BinaryIO:
        """Return a whole output, opened for reading.

        Raises:
            NotFound: when it is not here.
        """
        try:
            return self._path(batch, device).open("rb")
        except FileNotFoundError:
            raise NotFound(f"the output of batch {batch} on {device} is not here") from None

    def holds(self, batch: str, device: DeviceId, size_bytes: int, digest: Digest) -> bool:
        """Return whether this very output is here, whole: a kill may have come before the database heard of it."""
        path = self._path(batch, device)
        return path.exists() and path.stat().st_size == size_bytes and _digest_of(path) == digest

    def begin(self, batch: str, device: DeviceId, size_bytes: int, counted_bytes: int, promised_bytes: int = 0) -> int:
        """Make a part ready for what comes next; return how many of its bytes count.

        Args:
            batch: whose output it is.
            device: that sends it.
            size_bytes: of the whole.
            counted_bytes: that were synced, by the database.
            promised_bytes: that other uploads will still bring.

        Raises:
            StorageFull: when it would take more room than outputs may.
        """
        path = self._part(batch, device)
        with _full_disk_told_apart(self._folder):
            make_folder_durably(path.parent, 0o700)
            have = min(counted_bytes, path.stat().st_size if path.exists() else 0)
            self._require_room(size_bytes - have + promised_bytes)
            with path.open("ab") as file:
                file.truncate(have)
                os.fsync(file.fileno())
            sync_folder(path.parent)
        return have

    def append(self, batch: str, device: DeviceId, offset: int, piece: bytes) -> int:
        """Add a piece; return how many bytes are here.

        Raises:
            Conflict: when the part does not end at `offset`.
            StorageFull: when the disk is full.
        """
        path = self._part(batch, device)
        with _full_disk_told_apart(self._folder), path.open("ab") as file:
            if file.tell() != offset:
                raise Conflict(f"the part of batch {batch} has {file.tell()} bytes, the piece begins at {offset}")
            file.write(piece)
        return offset + len(piece)

    def sync(self, batch: str, device: DeviceId) -> None:
        """Make the part survive a power cut.

        Raises:
            StorageFull: when the disk is full.
        """
        with _full_disk_told_apart(self._folder), self._part(batch, device).open("rb") as file:
            os.fsync(file.fileno())

    def finish(self, batch: str, device: DeviceId, digest: Digest) -> None:
        """Give the part its name.

        Raises:
            BadDigest: when it is not what was offered; the part is removed.
        """
        part = self._part(batch, device)
        found = _digest_of(part)
        if found != digest:
            part.unlink()
            raise BadDigest(f"the output of batch {batch} arrived with digest {found} instead of {digest}: ask again")
        rename_durably(part, self._path(batch, device))

    def remove(self, batch: str) -> None:
        """Remove all outputs of a batch, parts too."""
        shutil.rmtree(self._folder / batch, ignore_errors=True)

    def keep_only(self, batches: Collection[str]) -> None:
        """Remove the outputs of all other batches."""
        for folder in self._folder.iterdir():
            if folder.name not in batches:
                self.remove(folder.name)

    def _require_room(self, wanted_bytes: int) -> None:
        used = 0
        for path in self._folder.glob("*/*"):
            with contextlib.suppress(FileNotFoundError):
                used += path.stat().st_size
        if used + wanted_bytes > self._limit_bytes:
            raise StorageFull(
                f"outputs of batches take {used} of {self._limit_bytes} bytes, {wanted_bytes} more do not fit: "
                "remove some with `regatta batch results ID --output DIR --delete`"
            )
        free = shutil.disk_usage(self._folder).free
        if free - wanted_bytes < self._reserve_bytes:
            raise StorageFull(f"{free} bytes are free at {self._folder}, {self._reserve_bytes} are kept: free some")

    def _path(self, batch: str, device: DeviceId) -> Path:
        return self._folder / batch / device

    def _part(self, batch: str, device: DeviceId) -> Path:
        return self._folder / batch / f".{device}.part"


def _digest_of(path: Path) -> Digest:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
    return Digest(digest.hexdigest())


@contextmanager
def _full_disk_told_apart(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as err:
        if err.errno in _FULL:
            raise StorageFull(f"no space left in {folder}: free some on the server and it goes on") from err
        raise
