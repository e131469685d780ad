"""A download under way, on disk: `partial/<digest>` and `partial/<digest>.bits`, resumed after any cut.

Invariants:
- A bit counts as synced only after the chunks it stands for are: `sync` writes content, then bits. What was not synced
  before a power cut is fetched again; nothing is believed that may be lost.
- What was written and not synced is there after a kill of this process, as long as the kernel runs: each chunk is
  marked as written after its content, in bits that bear the kernel's boot id and count only under the same.
- The file becomes `blobs/<digest>` only when the SHA-256 of the whole is right. A wrong one is deleted with its bits.
"""

from __future__ import annotations

import logging
import os
import uuid
from pathlib import Path

from regatta_agent.disk.digests import Digests
from regatta_agent.errors import WrongBlob
from regatta_protocol.chunk import chunk_count
from regatta_protocol.durable import read_bounded, remove_durably, rename_durably, shortage_of, write_durably
from regatta_protocol.errors import RegattaError
from regatta_protocol.manifest import FileRef

__all__ = ["PartialFile", "kernel_boot"]

logger = logging.getLogger(__name__)

# A power cut costs what was not synced: a thirty-second of the file, within 5 % of it; yet a small file is not synced
# with every chunk, nor a large one at intervals of more than 4 MiB (0.1-0.5 s on an SD card).
_SYNC_SHARE, _LEAST_SYNC_BYTES, _MOST_SYNC_BYTES = 32, 128 * 1024, 4 * 1024 * 1024
_BOOT_BYTES = 16
_HEADER_BYTES = 4 + _BOOT_BYTES  # of the bits: the chunk size, big-endian, and the kernel's boot id or zeros
_WRITTEN, _SYNCED = 1, 2  # a byte of the bits, one for each chunk; 0: it is not here
_BOOT_ID = "proc/sys/kernel/random/boot_id"


def kernel_boot(sysroot: Path) -> bytes | None:
    """Return what tells this run of the kernel from every other; None where that cannot be read."""
    try:
        return uuid.UUID(read_bounded(sysroot / _BOOT_ID, 64).decode().strip()).bytes
    except (OSError, RegattaError, ValueError):
        return None


class PartialFile:
    """One unfinished blob."""

    def __init__(
        self, folder: Path, blobs: Path, file: FileRef, chunk_bytes: int, digests: Digests, boot: bytes | None = None
    ) -> None:
        self._path = folder / file.digest
        self._bits_path = folder / f"{file.digest}.bits"
        self._blob_path = blobs / file.digest
        self._file = file
        self._chunk_bytes = chunk_bytes
        self._digests = digests
        self._count = chunk_count(file.size_bytes, chunk_bytes)
        self._sync_bytes = min(max(file.size_bytes // _SYNC_SHARE, _LEAST_SYNC_BYTES), _MOST_SYNC_BYTES)
        self._unsynced_bytes = 0
        self._boot = boot if file.size_bytes > _LEAST_SYNC_BYTES else None  # marks in a small file cost more than it
        self._descriptor: int | None = None
        self._marks: int | None = None  # the bits, open for marks
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
            self._bits_path.unlink(missing_ok=True)  # what they told of is not here
            try:
                os.ftruncate(self._descriptor, 0)
                os.ftruncate(self._descriptor, self._file.size_bytes)
            except OSError as err:
                raise _translated(err, self._path) from err
            if self._boot is not None:
                self._write_bits(bytes(self._count))
        else:
            self._adopt(kept)

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
            if self._marks is not None:
                os.pwrite(self._marks, bytes((_WRITTEN,)), _HEADER_BYTES + index)
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
        self._write_bits(bytes(_SYNCED * there for there in self.have))
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
        for descriptor in (self._descriptor, self._marks):
            if descriptor is not None:
                os.close(descriptor)
        self._descriptor = self._marks = None

    @property
    def _open(self) -> int:
        if self._descriptor is None:
            raise RegattaError(f"{self._path} is not open")
        return self._descriptor

    def _length(self, index: int) -> int:
        return min(self._chunk_bytes, self._file.size_bytes - index * self._chunk_bytes)

    def _adopt(self, bits: bytes) -> None:
        """Begin with what is here, and with marks for what comes."""
        same_kernel = self._boot is not None and bits[4:_HEADER_BYTES] == self._boot
        believed = (_WRITTEN, _SYNCED) if same_kernel else (_SYNCED,)
        states = bits[_HEADER_BYTES:]
        self.have = bytearray(state in believed for state in states)
        if same_kernel:
            self._unsynced_bytes = sum(self._length(index) for index, state in enumerate(states) if state == _WRITTEN)
            self._open_marks()
        elif self._boot is not None:
            self._write_bits(bytes(_SYNCED * there for there in self.have))

    def _write_bits(self, states: bytes) -> None:
        header = self._chunk_bytes.to_bytes(4, "big") + (self._boot or bytes(_BOOT_BYTES))
        write_durably(self._bits_path, header + states)
        self._open_marks()

    def _open_marks(self) -> None:
        """Mark in the file that is in place now."""
        if self._marks is not None:
            os.close(self._marks)
            self._marks = None
        if self._boot is not None:
            self._marks = os.open(self._bits_path, os.O_WRONLY | os.O_CLOEXEC)

    def _read_bits(self) -> bytes | None:
        """Return the bits with their header, or None when they are of no use."""
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
        if not right_size or int.from_bytes(data[:4], "big") != self._chunk_bytes:
            logger.warning("event=partial_of_other_chunks path=%s action=fetched_from_the_start", self._bits_path)
            return None
        return data


def _translated(err: OSError, path: Path) -> Exception:
    return shortage_of(err, str(path)) or err
