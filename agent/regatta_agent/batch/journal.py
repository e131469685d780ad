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
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from pydantic import BaseModel, ConfigDict

from regatta_agent.inputs.records import Block, Part
from regatta_protocol.codec import decode
from regatta_protocol.durable import read_bounded, remove_durably, write_durably
from regatta_protocol.errors import Rejected, TooNew

__all__ = ["Journal", "Progress", "Settings"]

_MAX_BYTES = 1024 * 1024
_SCHEMA = 2  # the digest's way of counting keys


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

    schema_version: int = _SCHEMA
    settings: Settings
    records: int = 0
    refused: int = 0
    spool_bytes: int = 0
    keys_digest: str = hashlib.sha256().hexdigest()
    row_shape: tuple[int, ...] | None = None  # of the output's rows, when it is an array


class Journal:
    """The spool and the journal of one job. Used by one thread, but for `keep`."""

    def __init__(self, output: Path, settings: Settings) -> None:
        """Keep the places; `open` reads them."""
        self._spool_path = output.with_name(f"{output.name}.part")
        self._path = output.with_name(f"{output.name}.journal")
        self._spool: BinaryIO | None = None
        self._settings = settings
        self._earlier = Progress(settings=settings)
        self._keys = hashlib.sha256()
        self._spool_bytes = 0
        self.records = 0
        self.refused = 0
        self.row_shape: tuple[int, ...] | None = None

    @property
    def exists(self) -> bool:
        """Whether an earlier run left a journal."""
        return self._path.exists()

    @property
    def is_damaged(self) -> bool:
        """Whether an earlier run left what nothing can go on with: no journal of this format, or a spool cut short."""
        try:
            earlier = decode(Progress, read_bounded(self._path, _MAX_BYTES), _MAX_BYTES)
            return earlier.schema_version != _SCHEMA or self._spool_path.stat().st_size < earlier.spool_bytes
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

    @property
    def progress(self) -> Progress:
        """How far the job is, with what was appended and is not kept yet."""
        return Progress(
            settings=self._settings,
            records=self.records,
            refused=self.refused,
            spool_bytes=self._spool_bytes,
            keys_digest=self._keys.hexdigest(),
            row_shape=self.row_shape,
        )

    def open(self, *, restart: bool) -> Progress:
        """Return how far an earlier run came, ready to go on there; nothing when there was none, or at a restart.

        The records that are left are then told by `rest_of`.

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
            earlier = self._earlier = self._read()
            self.records, self.refused, self.row_shape = earlier.records, earlier.refused, earlier.row_shape
            self._spool_bytes = earlier.spool_bytes
        if self._spool.tell() < self._spool_bytes:
            raise Rejected(f"{self._spool_path} is shorter than its journal says: begin again with --restart")
        self._spool.truncate(self._spool_bytes)
        self._spool.seek(self._spool_bytes)
        return self._earlier

    def _read(self) -> Progress:
        found = decode(Progress, read_bounded(self._path, _MAX_BYTES), _MAX_BYTES)
        if found.schema_version != _SCHEMA:
            raise Rejected(f"{self._path} was written by an older version of this program: begin again with --restart")
        if found.settings != self._settings:
            raise Rejected(
                f"an unfinished job with other settings lies at {self._path}: go on with its model, inputs and "
                "options, or begin again with --restart"
            )
        return found

    def rest_of(self, parts: Iterator[Part]) -> Iterator[Part]:
        """Return the records that are to be done, behind those that an earlier run finished. To be called once.

        Args:
            parts: the records of all inputs.

        Raises:
            Rejected: when the finished ones are not the same as they were.
        """
        earlier, behind = self._earlier, list[Part]()
        left = earlier.records
        while left > 0 and (part := next(parts, None)) is not None:
            for key in itertools.islice(part.keys, left):
                self._keys.update(_counted(key))
            if isinstance(part, Block) and len(part) > left:
                behind.append(part.part(left, len(part)))
            left -= len(part)
        if self._keys.hexdigest() != earlier.keys_digest:
            raise Rejected(
                f"the inputs have changed since {earlier.records} records were done: begin again with --restart"
            )
        return itertools.chain(behind, parts)

    def append(self, data: bytes, keys: Sequence[str], refused: int, row_shape: tuple[int, ...] | None = None) -> None:
        """Append the results of records to the spool; they count from the next checkpoint."""
        assert self._spool is not None
        self._spool.write(data)
        self._keys.update(b"".join(map(_counted, keys)))
        self._spool_bytes += len(data)
        self.records += len(keys)
        self.refused += refused
        if row_shape is not None:
            self.row_shape = row_shape

    def checkpoint(self) -> None:
        """Make all that was appended survive a kill and a power cut; raises as `keep`."""
        self.keep(self.mark())

    def mark(self) -> Progress:
        """Return how far the job is, for `keep`, with all that was appended in the kernel's hands."""
        assert self._spool is not None
        self._spool.flush()
        return self.progress

    def keep(self, progress: Progress) -> None:
        """Make what was appended before `mark` survive a kill and a power cut.

        Another thread may append meanwhile, but for one that keeps as well.

        Raises:
            StorageFull: when the disk is full.
            OSError: when it fails otherwise.
        """
        assert self._spool is not None
        os.fsync(self._spool.fileno())
        write_durably(self._path, progress.model_dump_json().encode(), mode=0o644)

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


def _counted(key: str) -> bytes:
    """Return what the digest takes of a key; no name of a file holds a NUL, so no two lists of keys are alike."""
    return f"{key}\0".encode(errors="surrogatepass")
