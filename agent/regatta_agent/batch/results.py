"""What results look like: lines or rows in the spool, and from there the output in its format.

The spool of jsonl, csv and parquet is JSON lines; that of npy is float32 rows. The output is written beside its place,
synced and renamed, so it is there whole or not at all.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from regatta_agent.batch.journal import Progress
from regatta_agent.serving.tensors import Array
from regatta_protocol.durable import rename_durably
from regatta_protocol.errors import Misuse, Rejected

__all__ = ["FORMATS", "Results", "encode_lines", "encode_rows", "format_of", "write_output"]

FORMATS = ("jsonl", "csv", "npy", "parquet")
_COLUMNS = ("key", "kind", "label", "index", "score", "count", "error")
_LINES = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)  # json.dumps would make one for each line
_PARQUET_ROWS = 4096


@dataclass(frozen=True)
class Results:
    """The answers to one or several records, in order, or why all of them were refused.

    `rows`, [n, …], is of the first output where the format is an array; else there is a document for each.
    """

    keys: Sequence[str]
    documents: Sequence[dict[str, Any]] = ()
    rows: Array | None = None
    error: str | None = None


def format_of(output: Path) -> str:
    """Return the format that the file's name asks for.

    Raises:
        Rejected: when it is none.
        Misuse: when it is parquet and pyarrow is not installed.
    """
    name = output.suffix.removeprefix(".").lower()
    if name not in FORMATS:
        raise Rejected(f"{output} has no known ending: use one of {', '.join(f'.{one}' for one in FORMATS)}")
    if name == "parquet":
        try:
            import pyarrow as _  # noqa: F401 - asked for now, before anything is inferred
        except ImportError as err:
            raise Misuse("parquet files need pyarrow: pip install 'regatta-edge[parquet]'") from err
    return name


def encode_lines(results: Sequence[Results]) -> bytes:
    """Return results as JSON lines."""
    lines = []
    for some in results:
        answers = some.documents if some.error is None else [{"error": some.error}] * len(some.keys)
        for key, answer in zip(some.keys, answers, strict=True):
            lines.append(_LINES.encode({"key": key, **answer}))
    # A name that is no UTF-8 is written with JSON's own escapes.
    return "".join(f"{line}\n" for line in lines).encode(errors="backslashreplace")


def encode_rows(results: Sequence[Results], shape: tuple[int, ...]) -> bytes:
    """Return results as float32 rows of the shape; a refused record is a row of NaN.

    Raises:
        Rejected: when an output has another shape.
    """
    pieces = []
    for some in results:
        rows = np.full((len(some.keys), *shape), np.nan) if some.rows is None else some.rows
        if rows.shape[1:] != shape:
            raise Rejected(
                f"the output of {some.keys[0]} has shape {list(rows.shape[1:])}, and before it {list(shape)}"
            )
        pieces.append(rows.astype("<f4", copy=False).tobytes())
    return b"".join(pieces)


def write_output(spool: Path, output: Path, progress: Progress) -> None:
    """Make the output of the whole spool, in the format of its settings.

    Raises:
        StorageFull, OSError: when it cannot be written; the spool is left as it was.
    """
    fresh = output.with_name(f".{output.name}.new")
    writer = {"jsonl": _copy, "csv": _csv, "npy": _npy, "parquet": _parquet}[progress.settings.format]
    with fresh.open("wb") as stream:
        writer(spool, stream, progress)
        stream.flush()
        os.fsync(stream.fileno())
    rename_durably(fresh, output)


def _copy(spool: Path, stream: BinaryIO, progress: Progress) -> None:
    with spool.open("rb") as source:
        shutil.copyfileobj(source, stream)


def _npy(spool: Path, stream: BinaryIO, progress: Progress) -> None:
    shape = (progress.records, *((0,) if progress.row_shape is None else progress.row_shape))
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)  # type: ignore[no-untyped-call]  # numpy has no types for it
    _copy(spool, stream, progress)


def _csv(spool: Path, stream: BinaryIO, progress: Progress) -> None:
    writer = csv.writer(_Text(stream), lineterminator="\n")
    writer.writerow(_COLUMNS)
    for line in _documents(spool):
        writer.writerow(_flat(line).values())


class _Text:
    """A binary stream to which the csv module writes."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(text.encode(errors="backslashreplace"))


def _parquet(spool: Path, stream: BinaryIO, progress: Progress) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"index": pa.int64(), "score": pa.float64(), "count": pa.int64()}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in (*_COLUMNS, "answer")])
    with pq.ParquetWriter(stream, schema) as writer:
        rows: list[dict[str, Any]] = []
        for line in _documents(spool):
            rows.append({**_flat(line), "answer": json.dumps(line, ensure_ascii=False)})
            if len(rows) == _PARQUET_ROWS:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows = []
        writer.write_table(pa.Table.from_pylist(rows, schema))


def _documents(spool: Path) -> Iterator[dict[str, Any]]:
    with spool.open("rb") as lines:
        for line in lines:
            document: dict[str, Any] = json.loads(line)
            yield document


def _flat(document: dict[str, Any]) -> dict[str, Any]:
    """Return one row: the best of an answer, and how many things it has."""
    found: list[dict[str, Any]] = next(
        (document[name] for name in ("classes", "objects", "keypoints") if name in document), []
    )
    best = found[0] if found else {}
    score = document.get("score", best.get("score", best.get("share")))
    values = {
        "key": document["key"],
        "kind": document.get("kind"),
        "label": best.get("label", best.get("name")),
        "index": best.get("index"),
        "score": score,
        "count": len(found),
        "error": document.get("error"),
    }
    return {name: values[name] for name in _COLUMNS}
