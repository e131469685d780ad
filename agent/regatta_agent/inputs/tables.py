"""Rows of .npy, CSV and parquet files, one after another: a file of any length takes the memory of a few rows."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from regatta_agent.inputs.wanted import Wanted
from regatta_agent.serving.tensors import Array
from regatta_protocol.errors import Misuse, Rejected

__all__ = ["NPY_MAGIC", "Item", "csv_rows", "looks_like_csv", "npy_rows", "parquet_rows"]

NPY_MAGIC = b"\x93NUMPY"
_MAX_LINE_BYTES = 64 * 1024 * 1024  # of CSV: a picture of 1024 × 1024 × 3 in text
_PARQUET_ROWS = 256
Item = bytes | Array  # a picture's or sound's file, or an array


def npy_rows(source: Path | bytes, name: str, wanted: Wanted) -> Sequence[Array] | Array:
    """Return the samples of a .npy file, at least one; a file on disk is mapped, and each is read when it is touched.

    Raises:
        Rejected: when it is no array of plain numbers, or of another shape.
    """
    try:
        if isinstance(source, bytes):
            array: Array = np.load(io.BytesIO(source), allow_pickle=False)
        else:
            array = np.load(source, mmap_mode="r", allow_pickle=False).view(np.ndarray)
    except (ValueError, EOFError, OSError) as err:
        raise Rejected(f"{name} is no readable .npy file of plain numbers: {err}") from err
    if array.dtype.kind not in "fiub":
        raise Rejected(f"{name} holds {array.dtype} and not numbers")
    return wanted.split(array, name)


def looks_like_csv(start: bytes) -> bool:
    """Return whether a file that begins so is text whose first line is numbers."""
    line = start.lstrip().split(b"\n", 1)[0]
    try:
        return bool(_cells(line.decode("ascii")))
    except ValueError:  # UnicodeDecodeError is one
        return False


def csv_rows(lines: Iterator[bytes], name: str, wanted: Wanted) -> Iterator[Array]:
    """Yield a sample a line, float32; a table whose lines together are one sample is that one.

    Raises:
        Rejected: when a line is not of numbers, or the rows fit no sample.
    """
    rows = _parsed(lines, name)
    first = next(rows, None)
    if first is None:
        raise Rejected(f"{name} is empty")
    try:
        yield from wanted.split(first, name)
    except Rejected:
        limit = int(np.prod(wanted.sample_shape or (0,))) // max(1, len(first)) + 1
        together = [first, *itertools.islice(rows, limit)]
        if len({len(row) for row in together}) != 1:
            raise Rejected(f"{name} has rows of different lengths") from None
        yield from wanted.split(np.stack(together), name)
        return
    for row in rows:
        if len(row) != len(first):
            raise Rejected(f"{name} has rows of different lengths: {len(first)} and {len(row)}")
        yield from wanted.split(row, name)


def _parsed(lines: Iterator[bytes], name: str) -> Iterator[Array]:
    for number, line in enumerate(lines, start=1):
        if len(line) > _MAX_LINE_BYTES:
            raise Rejected(f"line {number} of {name} is over {_MAX_LINE_BYTES} bytes")
        if line.strip():
            try:
                yield np.asarray(_cells(line.decode("ascii")), dtype=np.float32)
            except ValueError as err:
                raise Rejected(f"line {number} of {name} is not of numbers: {line[:40]!r}") from err


def _cells(line: str) -> list[float]:
    return [float(cell) for cell in line.replace(",", " ").replace(";", " ").split()]


def parquet_rows(path: Path, wanted: Wanted) -> tuple[int, Iterator[Item]]:
    """Return how many rows a parquet file has, and its samples.

    A row is one column of binary (a picture's or sound's file) or of lists of numbers, or several columns of numbers.

    Raises:
        Misuse: when pyarrow (extra `parquet`) is not installed.
        Rejected: when it is no parquet file, or of other columns.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as err:
        raise Misuse("parquet files need pyarrow: pip install 'regatta-edge[parquet]'") from err
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as err:
        raise Rejected(f"{path} is no readable parquet file: {err}") from err
    return int(file.metadata.num_rows), _parquet(file, path.name, wanted)


def _parquet(file: Any, name: str, wanted: Wanted) -> Iterator[Item]:  # noqa: ANN401 - pyarrow has no types
    for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
        columns = [column.to_pylist() for column in batch.columns]
        for row in zip(*columns, strict=True):
            if len(row) == 1 and isinstance(row[0], bytes):
                yield row[0]
                continue
            try:
                numbers = np.asarray(row[0] if len(row) == 1 else row)
            except ValueError as err:
                raise Rejected(f"{name} has rows that are not numbers: {err}") from err
            if numbers.dtype.kind not in "fiu":
                raise Rejected(f"{name} has columns of {numbers.dtype}: give binary, lists of numbers, or numbers")
            typed = numbers.astype(np.float32) if numbers.dtype.kind == "f" else numbers
            yield from wanted.split(typed, name)
