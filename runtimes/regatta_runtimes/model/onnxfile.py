"""Reads which operators and weights an ONNX file holds, without any runtime, and survives every damaged file.

Invariants:
- no read outside the buffer, no recursion, at most MAX_FIELDS fields visited;
- whatever the bytes are, the outcome is a Survey or Rejected, never another exception;
- the encoding follows https://protobuf.dev/programming-guides/encoding/ and fields onnx/onnx.proto.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from regatta_protocol.errors import Rejected
from regatta_runtimes.model.flatbuffer import Survey

__all__ = ["survey_onnx"]

MAX_FIELDS = 2_000_000  # a graph of 20,000 nodes has some 500,000
_GRAPH, _NODE, _INITIALIZER, _OP_TYPE = 7, 1, 5, 4
_DATA_TYPE, _RAW = 2, 9
_MAX_NAME_BYTES = 256
# TensorProto.DataType -> numpy's name
_TYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
    11: "float64", 16: "bfloat16", 21: "uint4", 22: "int4",
}  # fmt: skip
_QUANTIZED = frozenset({"QLinearConv", "QLinearMatMul", "QuantizeLinear"})


class _Reader:
    """Bounds-checked reads of protobuf."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data)
        self._left = MAX_FIELDS

    def __len__(self) -> int:
        return len(self._data)

    def fields(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield number, value and end of each field: of a varint its value, of bytes where they begin and end."""
        at = start
        while at < end:
            self._left -= 1
            if self._left < 0:
                raise Rejected(f"the ONNX file has over {MAX_FIELDS} fields: it is damaged or made to be slow")
            key, at = self._varint(at, end)
            kind = key & 7
            if kind == 0:
                value, at = self._varint(at, end)
                yield key >> 3, value, at
                continue
            size, at = self._varint(at, end) if kind == 2 else ({1: 8, 5: 4}.get(kind, -1), at)
            if size < 0 or at + size > end:
                raise Rejected(f"the ONNX file is cut off or damaged at byte {at} of {len(self._data)}")
            yield key >> 3, at, at + size
            at += size

    def text(self, start: int, end: int) -> str:
        if end - start > _MAX_NAME_BYTES:
            raise Rejected(f"the ONNX file is damaged: a name in it has {end - start} bytes")
        return bytes(self._data[start:end]).decode("utf-8", "replace")

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = shift = 0
        while at < end and shift < 64:
            byte = self._data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
            shift += 7
        raise Rejected(f"the ONNX file is cut off or damaged at byte {at} of {len(self._data)}")


def survey_onnx(data: bytes | memoryview) -> Survey:
    """Return what the ONNX file in `data` holds.

    Raises:
        Rejected: when it is no ONNX file, is cut off or is damaged.
    """
    reader = _Reader(data)
    operators: Counter[str] = Counter()
    weights: Counter[str] = Counter()
    for number, start, end in reader.fields(0, len(reader)):
        if number != _GRAPH:
            continue
        for inner, first, last in reader.fields(start, end):
            if inner == _NODE:
                operators[_operator(reader, first, last)] += 1
            elif inner == _INITIALIZER:
                kind, size = _weight(reader, first, last)
                weights[kind] += size
    if not operators:
        raise Rejected("the ONNX file holds no operator: it is no ONNX model, or there is nothing to run")
    activation = "int8" if _QUANTIZED & set(operators) else "float32"
    return Survey(dict(operators), {activation: 1}, dict(weights))


def _operator(reader: _Reader, start: int, end: int) -> str:
    names = [reader.text(first, last) for number, first, last in reader.fields(start, end) if number == _OP_TYPE]
    if not names:
        raise Rejected("the ONNX file is damaged: a node has no operator")
    return names[-1]


def _weight(reader: _Reader, start: int, end: int) -> tuple[str, int]:
    """Return type and bytes of a constant; one whose values are not raw counts with the bytes of the whole."""
    kind, size = 0, end - start
    for number, first, last in reader.fields(start, end):
        if number == _DATA_TYPE:
            kind = first
        elif number == _RAW:
            size = last - first
    return _TYPES.get(kind, f"type_{kind}"), size
