"""The blob folder: files named by the SHA-256 of their content, whole or absent.

An upload is written to `.incoming/`, synced, checked, and only then renamed to its name, so that a name's content
is always right, whatever is killed or cut. What a killed upload left behind is removed at the next start.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from regatta_protocol.durable import rename_durably, sync_folder
from regatta_protocol.errors import BadDigest, Rejected, StorageFull, TooLarge
from regatta_protocol.ids import Digest
from regatta_protocol.manifest import MAX_FILE_BYTES, FileRef

__all__ = ["BlobStore", "Upload"]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Upload:
    """A blob on its way in: feed it pieces, then `finish`."""

    def __init__(self, descriptor: int, path: Path, digest: Digest, limit_bytes: int) -> None:
        self._descriptor = descriptor
        self._path = path
        self._digest = digest
        self._limit_bytes = limit_bytes
        self._sha256 = hashlib.sha256()
        self._size_bytes = 0

    def write(self, piece: bytes) -> None:
        """Add a piece.

        Raises:
            TooLarge: when the whole is over the limit.
            StorageFull: when the disk is full.
        """
        self._size_bytes += len(piece)
        if self._size_bytes > self._limit_bytes:
            raise TooLarge(f"the file is longer than the limit of {self._limit_bytes} bytes")
        self._sha256.update(piece)
        with _full_disk_told_apart(self._path.parent):
            view = memoryview(piece)
            while view:
                view = view[os.write(self._descriptor, view) :]

    def finish(self, destination: Path) -> int:
        """Check the digest and put the file in its place; returns its size in bytes.

        Raises:
            BadDigest: when the content is not what its name promises.
        """
        found = self._sha256.hexdigest()
        if found != self._digest:
            raise BadDigest(
                f"the file arrived with digest {found} instead of {self._digest} ({self._size_bytes} bytes): "
                "it was damaged on its way or is another one; send it again"
            )
        with _full_disk_told_apart(self._path.parent):
            os.fsync(self._descriptor)
            rename_durably(self._path, destination)
        return self._size_bytes


class BlobStore:
    """A folder of blobs."""

    def __init__(self, folder: Path, limit_bytes: int = MAX_FILE_BYTES) -> None:
        self.folder = folder
        self._incoming = folder / ".incoming"
        self._limit_bytes = limit_bytes

    def prepare(self) -> None:
        """Make the folders, and remove what killed uploads left."""
        self._incoming.mkdir(parents=True, exist_ok=True)
        sync_folder(self.folder)
        for stale in self._incoming.iterdir():
            stale.unlink()

    def path(self, digest: Digest) -> Path:
        """Return where the blob lies, or would lie."""
        return self.folder / digest

    def size_bytes(self, digest: Digest) -> int | None:
        """Return the blob's size, or None when it is not here."""
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError:
            return None

    def open(self, digest: Digest) -> BinaryIO:
        """Return the blob, opened for reading.

        Raises:
            FileNotFoundError: when it is not here.
        """
        return self.path(digest).open("rb")

    @contextmanager
    def receive(self, digest: Digest) -> Iterator[Upload]:
        """Yield an upload; what is not finished when the block ends is removed.

        Raises:
            StorageFull: when the disk is full.
        """
        path = self._incoming / f"{digest}.{secrets.token_hex(4)}"
        with _full_disk_told_apart(self._incoming):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            yield Upload(descriptor, path, digest, self._limit_bytes)
        finally:
            os.close(descriptor)
            path.unlink(missing_ok=True)

    def put(self, data: bytes) -> FileRef:
        """Store a small blob that is in memory; returns its reference."""
        digest = Digest(hashlib.sha256(data).hexdigest())
        with self.receive(digest) as upload:
            upload.write(data)
            upload.finish(self.path(digest))
        return FileRef(digest=digest, size_bytes=len(data))

    def require(self, refs: tuple[FileRef, ...]) -> None:
        """Check that every file is here with its size.

        Raises:
            Rejected: when one is missing or of another size.
        """
        for ref in refs:
            found = self.size_bytes(ref.digest)
            if found is None:
                raise Rejected(f"file {ref.digest} ({ref.size_bytes} bytes) is not uploaded: send it first")
            if found != ref.size_bytes:
                raise Rejected(f"file {ref.digest} has {found} bytes here, but the bundle says {ref.size_bytes}")


@contextmanager
def _full_disk_told_apart(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as err:
        if err.errno in _FULL:
            raise StorageFull(f"no space left in {folder}: free some on the server and send the file again") from err
        raise
