"""Records: one sample each, with a key that tells it apart, in an order that is the same each time.

An input is a file (picture, sound, .npy, CSV, parquet), a folder with files below it (hidden ones left out), a glob
pattern, or - for standard input. What a file is, its content decides.
"""

from __future__ import annotations

import glob
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from regatta_agent.inputs.tables import NPY_MAGIC, Item, csv_rows, looks_like_csv, npy_rows, parquet_rows
from regatta_agent.inputs.wanted import Wanted
from regatta_agent.serving.tensors import Array
from regatta_protocol.durable import read_bounded
from regatta_protocol.errors import Rejected, TooLarge

__all__ = ["MAX_FILE_BYTES", "Block", "Part", "Record", "Records", "first_of", "open_records", "records_of"]

MAX_FILE_BYTES = 256 * 1024 * 1024  # of standard input, which is held whole
_MAX_ITEM_BYTES = 32 * 1024 * 1024  # of a picture or sound, as the worker takes it
_SNIFFED_BYTES = 4096


@dataclass(frozen=True)
class Record:
    """A sample: `read` returns a file's bytes or an array; it raises Rejected for this sample alone."""

    key: str
    read: Callable[[], Item]

    def __len__(self) -> int:
        return 1

    @property
    def keys(self) -> Iterator[str]:
        """Its key."""
        yield self.key


@dataclass(frozen=True)
class Block:
    """Samples that lie one after another in an array, [n, …], as many records: `NAME[FIRST]`, `NAME[FIRST + 1]`, ….

    Of a file on disk the array is mapped, so that what is not touched is not read.
    """

    name: str
    array: Array
    first: int = 0

    def __len__(self) -> int:
        return len(self.array)

    @property
    def keys(self) -> Iterator[str]:
        """The keys of its records."""
        for place in range(self.first, self.first + len(self.array)):
            yield f"{self.name}[{place}]"

    def part(self, start: int, stop: int) -> Block:
        """Return its records from `start` to before `stop`, of which there may be fewer."""
        return Block(self.name, self.array[start:stop], self.first + start)

    def records(self) -> Iterator[Record]:
        """Yield its records one by one; the item of each is a copy."""
        for key, row in zip(self.keys, self.array, strict=True):
            yield Record(key, partial(np.array, row))


Part = Record | Block


@dataclass(frozen=True)
class Records:
    """Records in order, and how many there are where that is known beforehand."""

    parts: Iterator[Part]
    total: int | None

    @property
    def rows(self) -> Iterator[Record]:
        """The records one by one."""
        return records_of(self.parts)


def records_of(parts: Iterable[Part]) -> Iterator[Record]:
    """Yield the records of all parts, one by one."""
    for part in parts:
        if isinstance(part, Block):
            yield from part.records()
        else:
            yield part


def first_of(parts: Iterator[Part], count: int | None) -> Iterator[Part]:
    """Yield the first `count` records; None: all."""
    left = count
    while (left is None or left > 0) and (part := next(parts, None)) is not None:
        if left is not None and isinstance(part, Block):
            part = part.part(0, left)
        yield part
        left = None if left is None else left - len(part)


def open_records(inputs: Sequence[str], wanted: Wanted) -> Records:
    """Return the records of every input, in the order of the inputs.

    Raises:
        Rejected: when an input is not there. What is wrong within one is raised when it is come to.
    """
    parts = [_open(text, wanted) for text in inputs]
    totals = [part.total for part in parts]
    known = [total for total in totals if total is not None]
    return Records((one for part in parts for one in part.parts), sum(known) if len(known) == len(totals) else None)


def _open(text: str, wanted: Wanted) -> Records:
    if text == "-":
        return _held(_standard_input(), "-", wanted)
    path = Path(text)
    if path.is_dir():
        return Records((_file_record(found, wanted) for found in _below(path)), sum(1 for _ in _below(path)))
    if path.is_file():
        return _file(path, wanted)
    # Path.glob takes no absolute patterns
    matches = sorted(name for name in glob.glob(text, recursive=True) if Path(name).is_file())  # noqa: PTH207
    if matches:
        return Records((_file_record(Path(name), wanted) for name in matches), len(matches))
    raise Rejected(f"{text} is no file, folder, or pattern that any file matches")


def _standard_input() -> bytes:
    data = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise TooLarge(f"standard input is over the limit of {MAX_FILE_BYTES} bytes: give a file")
    return data


def _below(folder: Path) -> Iterator[Path]:
    """Yield the files below the folder, sorted, one folder at a time in memory."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(place, name)
            if not name.startswith(".") and path.is_file():
                yield path


def _file_record(path: Path, wanted: Wanted) -> Record:
    """Return the record of a file of one sample, among many."""

    def read() -> Item:
        data = read_item(path)
        if not data.startswith(NPY_MAGIC):
            return data
        rows = npy_rows(data, str(path), wanted)
        if len(rows) != 1:
            raise Rejected(f"{path} holds {len(rows)} samples: in a folder each file is one, so give it by its name")
        return rows[0]

    return Record(str(path), read)


def read_item(path: Path) -> bytes:
    """Return the content of a picture's or a sound's file.

    Raises:
        Rejected: when it cannot be read.
        TooLarge: when it is over 32 MiB.
    """
    try:
        return read_bounded(path, _MAX_ITEM_BYTES)
    except OSError as err:
        raise Rejected(f"{path} cannot be read: {err.strerror}") from err


def _file(path: Path, wanted: Wanted) -> Records:
    try:
        with path.open("rb") as stream:
            start = stream.read(_SNIFFED_BYTES)
    except OSError as err:
        raise Rejected(f"{path} cannot be read: {err.strerror}") from err
    if start.startswith(NPY_MAGIC):
        return _stacked(str(path), npy_rows(path, str(path), wanted))
    if start.startswith(b"PAR1"):
        count, items = parquet_rows(path, wanted)
        return _numbered(str(path), items, count)
    if not start or looks_like_csv(start):
        return _numbered(str(path), csv_rows(_lines(path), str(path), wanted), None)
    return Records(iter([_file_record(path, wanted)]), 1)


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        yield from stream


def _held(data: bytes, name: str, wanted: Wanted) -> Records:
    """Return the records in content that is in memory already."""
    if data.startswith(NPY_MAGIC):
        return _stacked(name, npy_rows(data, name, wanted))
    if not data or looks_like_csv(data[:_SNIFFED_BYTES]):
        return _numbered(name, csv_rows(iter(io.BytesIO(data)), name, wanted), None)
    return Records(iter([Record(name, lambda: data)]), 1)


def _stacked(name: str, samples: Sequence[Array] | Array) -> Records:
    """Return the records of an array: a block, or one record with the file's own name."""
    if isinstance(samples, np.ndarray) and len(samples) > 1:
        return Records(iter([Block(name, samples)]), len(samples))
    return Records(iter([Record(name, partial(np.array, samples[0]))]), 1)


def _numbered(name: str, items: Iterable[Item], total: int | None) -> Records:
    """Return the records of a file with many, or with the file's own name when it is known to be one."""

    def records() -> Iterator[Record]:
        for place, item in enumerate(items):
            yield Record(name if total == 1 else f"{name}[{place}]", lambda item=item: item)  # type: ignore[misc]

    return Records(records(), total)
