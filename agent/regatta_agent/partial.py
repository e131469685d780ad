"""A download under way, on disk: `partial/<digest>` and `partial/<digest>.bits`, resumed after any cut.

Invariants:
- A bit is durable only after the chunks it stands for: `sync` writes content, then bits. What was not synced is
  fetched again; nothing is believed that may be lost.
- The file becomes `blobs/<digest>` only when the SHA-256 of the whole is right. A wrong one is deleted with its bits.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from regatta_agent.digests import Digests
from regatta_agent.errors import WrongBlob
from regatta_protocol.chunk import chunk_count
from regatta_protocol.durable import read_bounded, remove_durably, rename_durably, shortage_of, write_durably
from regatta_protocol.errors import RegattaError
from regatta_protocol.manifest import FileRef

__all__ = ["PartialFile"]

logger = logging.getLogger(__name__)

# A cut costs what was not synced: a thirty-second of the file, so that several cuts stay within 5 % of it; yet a small
# file is not synced with every chunk, nor a large one at intervals of more than 4 MiB (0.1-0.5 s on an SD card).
_SYNC_SHARE, _LEAST_SYNC_BYTES, _MOST_SYNC_BYTES = 32, 128 * 1024, 4 * 1024 * 1024
_HEADER_BYTES = 4  # of the bits: the chunk size, big-endian


class PartialFile:
    """One unfinished blob."""

    def __init__(self, folder: Path, blobs: Path, file: FileRef, chunk_bytes: int, digests: Digests) -> None:
        self._path = folder / file.digest
        self._bits_path = folder / f"{file.digest}.bits"
        self._blob_path = blobs / file.digest
        self._file = file
        self._chunk_bytes = chunk_bytes
        self._digests = digests
        self._count = chunk_count(file.size_bytes, chunk_bytes)
        self._sync_bytes = min(max(file.size_bytes // _SYNC_SHARE, _LEAST_SYNC_BYTES), _MOST_SYNC_BYTES)
        self._unsynced_bytes = 0
        self._descriptor: int | None = None
        self.have = bytearray(self._count)  # one byte a chunk, 0 or 1

    def open(self) -> None:
        """Open or make the files, and learn what is there.

        Raises:
            StorageFull: when there is no space.
            OSError: when they cannot be opened.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._descriptor = os.open(self._path, flags, 0o600)
        kept = self._read_bits()
        size_bytes = os.fstat(self._descriptor).st_size
        if kept is not None and size_bytes != self._file.size_bytes:
            logger.warning(
                "event=partial_cut_short path=%s bytes=%d action=fetched_from_the_start", self._path, size_bytes
            )
            kept = None
        if kept is None:
            try:
                os.ftruncate(self._descriptor, 0)
                os.ftruncate(self._descriptor, self._file.size_bytes)
            except OSError as err:
                raise _translated(err, self._path) from err
        else:
            self.have = kept

    def missing(self) -> list[int]:
        """Return the indices of chunks that are not here."""
        return [index for index, there in enumerate(self.have) if not there]

    def bitmap(self) -> bytes:
        """Return what is here as core.transfer takes it: bit i of byte i // 8 from the lowest."""
        bits = bytearray(-(-self._count // 8))
        for index, there in enumerate(self.have):
            bits[index // 8] |= there << index % 8
        return bytes(bits)

    def write(self, index: int, payload: bytes) -> bool:
        """Store a chunk; return whether it was a new one of the right length.

        Raises:
            StorageFull: when there is no space.
            OSError: when it cannot be written.
        """
        if not 0 <= index < self._count or self.have[index] or len(payload) != self._length(index):
            return False
        try:
            view, offset = memoryview(payload), index * self._chunk_bytes
            while view:
                written = os.pwrite(self._open, view, offset)
                view, offset = view[written:], offset + written
        except OSError as err:
            raise _translated(err, self._path) from err
        self.have[index] = 1
        self._unsynced_bytes += len(payload)
        if self._unsynced_bytes >= self._sync_bytes:
            self.sync()
        return True

    def sync(self) -> None:
        """Make what is here survive a cut: content first, then the bits.

        Raises:
            StorageFull: when there is no space for it.
        """
        try:
            os.fsync(self._open)
        except OSError as err:
            raise _translated(err, self._path) from err
        write_durably(self._bits_path, self._chunk_bytes.to_bytes(_HEADER_BYTES, "big") + bytes(self.have))
        self._unsynced_bytes = 0

    def finish(self) -> bool:
        """Verify the whole and put it among the blobs; return False when that takes another turn (digests.py).

        Raises:
            WrongBlob: when its digest is another; nothing of it is kept.
            StorageFull: when it cannot be synced for want of space.
        """
        if self._unsynced_bytes > 0:
            try:
                os.fsync(self._open)
            except OSError as err:
                raise _translated(err, self._path) from err
            self._unsynced_bytes = 0
        actual = self._digests.of(self._path)
        if actual is None:
            return False
        if actual != self._file.digest:
            self.close()
            self._bits_path.unlink(missing_ok=True)
            remove_durably(self._path)  # what comes back after a power cut would be found wrong once more
            raise WrongBlob(
                f"file {self._file.digest[:12]} arrived with digest {actual[:12]}: it was changed on its way or at "
                "the sender",
                self._file.digest,
            )
        rename_durably(self._path, self._blob_path)
        self._bits_path.unlink(missing_ok=True)
        self.close()
        return True

    def close(self) -> None:
        """Close the file. May be called twice."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    @property
    def _open(self) -> int:
        if self._descriptor is None:
            raise RegattaError(f"{self._path} is not open")
        return self._descriptor

    def _length(self, index: int) -> int:
        return min(self._chunk_bytes, self._file.size_bytes - index * self._chunk_bytes)

    def _read_bits(self) -> bytearray | None:
        try:
            data = read_bounded(self._bits_path, _HEADER_BYTES + self._count)
        except FileNotFoundError:
            return None
        except (OSError, RegattaError) as err:
            logger.warning(
                "event=partial_unreadable path=%s error=%s action=fetched_from_the_start", self._bits_path, err
            )
            return None
        right_size = len(data) == _HEADER_BYTES + self._count
        if not right_size or int.from_bytes(data[:_HEADER_BYTES], "big") != self._chunk_bytes:
            logger.warning("event=partial_of_other_chunks path=%s action=fetched_from_the_start", self._bits_path)
            return None
        return bytearray(1 if byte else 0 for byte in data[_HEADER_BYTES:])


def _translated(err: OSError, path: Path) -> Exception:
    return shortage_of(err, str(path)) or err
