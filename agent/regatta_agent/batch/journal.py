"""How far a batch job is, on disk: persisted before it counts.

Two files lie beside the output until it is whole: `OUTPUT.part`, the *spool*, to which results are appended in the
order of the records, and `OUTPUT.journal`, which says how many records the spool holds and in how many bytes. At a
*checkpoint* the spool is synced first and the journal written after it, durably. After a kill at any moment the spool
is cut to the journal's bytes, and the job goes on with the next record: what was answered after the last checkpoint is
asked again, for an inference changes nothing.

The journal holds a digest over the keys of the finished records in order, so that a job that goes on over changed
inputs is noticed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from pathlib import Path
from typing import BinaryIO

from pydantic import BaseModel, ConfigDict

from regatta_protocol.codec import decode
from regatta_protocol.durable import read_bounded, remove_durably, write_durably
from regatta_protocol.errors import Rejected, TooNew

__all__ = ["Journal", "Progress", "Settings"]

_MAX_BYTES = 1024 * 1024


class Settings(BaseModel):
    """What must be the same when a job goes on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    inputs: tuple[str, ...]
    format: str
    top: int


class Progress(BaseModel):
    """What the journal says."""

    model_config = ConfigDict(frozen=True)

    schema_version: int = 1
    settings: Settings
    records: int = 0
    refused: int = 0
    spool_bytes: int = 0
    keys_digest: str = ""
    row_shape: tuple[int, ...] | None = None  # of the output's rows, when it is an array


class Journal:
    """The spool and the journal of one job. Used by one thread."""

    def __init__(self, output: Path, settings: Settings) -> None:
        """Keep the places; `open` reads them."""
        self._spool_path = output.with_name(f"{output.name}.part")
        self._path = output.with_name(f"{output.name}.journal")
        self._spool: BinaryIO | None = None
        self._keys = ""
        self.progress = Progress(settings=settings)

    @property
    def exists(self) -> bool:
        """Whether an earlier run left a journal."""
        return self._path.exists()

    @property
    def is_damaged(self) -> bool:
        """Whether an earlier run left what nothing can go on with: bytes that are no journal, or a spool cut short."""
        try:
            earlier = decode(Progress, read_bounded(self._path, _MAX_BYTES), _MAX_BYTES)
            return self._spool_path.stat().st_size < earlier.spool_bytes
        except FileNotFoundError:
            return self._path.exists()  # then it is the spool that is gone
        except TooNew:
            return False
        except Rejected:
            return True

    @property
    def spool_path(self) -> Path:
        """Where results lie until the output is whole."""
        return self._spool_path

    def open(self, *, restart: bool) -> Progress:
        """Return how far an earlier run came, ready to go on there; nothing when there was none, or at a restart.

        Raises:
            Rejected: when another run is at it, an unfinished job with other settings is there, or its spool is shorter
                than its journal says.
            OSError: when the files cannot be written.
        """
        self._spool = self._spool_path.open("ab")
        try:
            fcntl.flock(self._spool, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            raise Rejected(f"another run is at {self._spool_path}: let it end, or end it") from err
        if restart:
            remove_durably(self._path)
        if self._path.exists():
            self.progress = self._read()
            self._keys = self.progress.keys_digest
        if self._spool.tell() < self.progress.spool_bytes:
            raise Rejected(f"{self._spool_path} is shorter than its journal says: begin again with --restart")
        self._spool.truncate(self.progress.spool_bytes)
        self._spool.seek(self.progress.spool_bytes)
        return self.progress

    def _read(self) -> Progress:
        found = decode(Progress, read_bounded(self._path, _MAX_BYTES), _MAX_BYTES)
        if found.settings != self.progress.settings:
            raise Rejected(
                f"an unfinished job with other settings lies at {self._path}: go on with its model, inputs and "
                "options, or begin again with --restart"
            )
        return found

    def append(self, data: bytes, keys: list[str], refused: int, row_shape: tuple[int, ...] | None = None) -> None:
        """Append the results of records to the spool; they count from the next checkpoint."""
        assert self._spool is not None
        self._spool.write(data)
        for key in keys:
            self._keys = chained(self._keys, key)
        before = self.progress
        self.progress = before.model_copy(
            update={
                "records": before.records + len(keys),
                "refused": before.refused + refused,
                "spool_bytes": before.spool_bytes + len(data),
                "keys_digest": self._keys,
                "row_shape": row_shape or before.row_shape,
            }
        )

    def checkpoint(self) -> None:
        """Make all that was appended survive a kill and a power cut.

        Raises:
            StorageFull: when the disk is full.
        """
        assert self._spool is not None
        self._spool.flush()
        os.fsync(self._spool.fileno())
        write_durably(self._path, self.progress.model_dump_json().encode(), mode=0o644)

    def close(self) -> None:
        """Close the spool."""
        if self._spool is not None:
            self._spool.close()
            self._spool = None

    def discard(self) -> None:
        """Remove both files, the journal first: a spool without one counts for nothing."""
        self.close()
        remove_durably(self._path)
        remove_durably(self._spool_path)


def chained(digest: str, key: str) -> str:
    """Return the digest over one more key."""
    return hashlib.sha256(f"{digest}\n{key}".encode()).hexdigest()
