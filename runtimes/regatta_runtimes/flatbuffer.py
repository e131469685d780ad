"""Reads which operators and tensors a TFLite file holds, without any runtime, and survives every damaged file.

Invariants:
- no read outside the buffer, no recursion, at most MAX_ENTRIES table entries visited: the worst file costs seconds;
- whatever the bytes are, the outcome is a Survey or Rejected, never another exception;
- offsets follow https://flatbuffers.dev/internals/ and fields tensorflow/lite/schema/schema.fbs.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from regatta_protocol.errors import Rejected
from regatta_runtimes.operators import CUSTOM_CODE, CUSTOM_DELEGATES, TENSOR_TYPES, operator_name

__all__ = ["Survey", "survey"]

MAX_ENTRIES = 500_000  # vision models have under 1,000 tensors; language models under 20,000
_MAX_NAME_BYTES = 256
_IDENTIFIER = b"TFL3"


@dataclass(frozen=True)
class Survey:
    """What a file holds: the operators in use, each with its count, and bytes of tensors by type."""

    operators: dict[str, int]
    activations: dict[str, int]  # type -> number of tensors that are computed
    weights: dict[str, int]  # type -> bytes of constant data

    @property
    def requires(self) -> tuple[str, ...]:
        """The delegates without which some operator cannot run."""
        return tuple(sorted({CUSTOM_DELEGATES[name] for name in self.operators if name in CUSTOM_DELEGATES}))

    @property
    def precision(self) -> str:
        """float32, float16, int8, uint8, int16x8 or int8-dynamic (int8 weights under float activations)."""
        activation = max(self.activations, key=lambda name: self.activations[name], default="float32")
        if activation in ("int8", "uint8"):
            return activation
        if activation == "int16":
            return "int16x8"
        weight = max(self.weights, key=lambda name: self.weights[name], default="float32")
        return {"float16": "float16", "int8": "int8-dynamic", "uint8": "int8-dynamic", "int4": "int4-dynamic"}.get(
            weight, "float32"
        )


class _Reader:
    """Bounds-checked reads of a flatbuffer."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data)
        self._left = MAX_ENTRIES

    def scalar(self, layout: str, offset: int) -> int:
        size = struct.calcsize(layout)
        if offset < 0 or offset + size > len(self._data):
            raise Rejected(
                f"the TFLite file is cut off or damaged: it points to byte {offset + size} of {len(self._data)}"
            )
        return int(struct.unpack_from(layout, self._data, offset)[0])

    def field(self, table: int, index: int) -> int | None:
        """Return where field `index` of the table lies, or None when it has its default."""
        vtable = table - self.scalar("<i", table)
        size = self.scalar("<H", vtable)
        slot = 4 + 2 * index
        if slot + 2 > size:
            return None
        offset = self.scalar("<H", vtable + slot)
        return table + offset if offset else None

    def number(self, table: int, index: int, layout: str, default: int = 0) -> int:
        at = self.field(table, index)
        return default if at is None else self.scalar(layout, at)

    def vector(self, table: int, index: int) -> tuple[int, int]:
        """Return where a vector's elements begin and how many it says it has."""
        at = self.field(table, index)
        if at is None:
            return 0, 0
        start = at + self.scalar("<I", at)
        return start + 4, self.scalar("<I", start)

    def tables(self, table: int, index: int) -> Iterator[int]:
        """Yield where each table of a vector of tables lies."""
        start, count = self.vector(table, index)
        for number in range(count):
            self._left -= 1
            if self._left < 0:
                raise Rejected(f"the TFLite file has over {MAX_ENTRIES} entries: it is damaged or made to be slow")
            at = start + 4 * number
            yield at + self.scalar("<I", at)

    def text(self, table: int, index: int) -> str:
        start, size = self.vector(table, index)
        if size > _MAX_NAME_BYTES or start + size > len(self._data):
            raise Rejected(f"the TFLite file is damaged: an operator's name has {size} bytes")
        return bytes(self._data[start : start + size]).decode("utf-8", "replace")


def survey(data: bytes | memoryview) -> Survey:
    """Return what the TFLite file in `data` holds.

    Raises:
        Rejected: when it is no TFLite file, is cut off or is damaged.
    """
    if len(data) < 8 or bytes(data[4:8]) != _IDENTIFIER:
        raise Rejected(f"this is no TFLite model: its bytes 4 to 8 are {bytes(data[4:8])!r} and not {_IDENTIFIER!r}")
    reader = _Reader(data)
    model = reader.scalar("<I", 0)
    codes = [_operator_of(reader, table) for table in reader.tables(model, 1)]
    buffers = [_buffer_size(reader, table) for table in reader.tables(model, 4)]
    operators: Counter[str] = Counter()
    activations: Counter[str] = Counter()
    weights: Counter[str] = Counter()
    for subgraph in reader.tables(model, 2):
        for operator in reader.tables(subgraph, 3):
            index = reader.number(operator, 0, "<I")
            if index >= len(codes):
                raise Rejected(f"the TFLite file is damaged: an operator has code {index} of {len(codes)}")
            operators[codes[index]] += 1
        for tensor in reader.tables(subgraph, 0):
            kind = reader.number(tensor, 1, "<b")
            name = TENSOR_TYPES[kind] if 0 <= kind < len(TENSOR_TYPES) else f"type_{kind}"
            buffer = reader.number(tensor, 2, "<I")
            size = buffers[buffer] if buffer < len(buffers) else 0
            if size:
                weights[name] += size
            else:
                activations[name] += 1
    if not operators:
        raise Rejected("the TFLite file holds no operator: there is nothing to run")
    return Survey(dict(operators), dict(activations), dict(weights))


def _operator_of(reader: _Reader, table: int) -> str:
    """Return the name of an operator code; the code itself is in an old byte field or, above 127, in a new one."""
    code = max(reader.number(table, 0, "<b"), reader.number(table, 3, "<i"))
    return (reader.text(table, 1) or "CUSTOM") if code == CUSTOM_CODE else operator_name(code)


def _buffer_size(reader: _Reader, table: int) -> int:
    """Return the bytes of constant data, in the file or (beyond 2 GiB) behind it."""
    _start, size = reader.vector(table, 0)
    if size:
        reader.scalar("<B", _start + size - 1)
    return size or reader.number(table, 2, "<Q")
