"""Reads which operators and tensors a TFLite file holds, and its inputs and outputs, without any runtime.

Invariants:
- no read outside the buffer, no recursion, at most MAX_ENTRIES table entries visited: the worst file costs seconds;
- whatever the bytes are, the outcome is an answer or Rejected, never another exception;
- offsets follow https://flatbuffers.dev/internals/ and fields tensorflow/lite/schema/schema.fbs.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from regatta_protocol.errors import Rejected
from regatta_protocol.values import TensorSpec
from regatta_runtimes.model.operators import CUSTOM_CODE, CUSTOM_DELEGATES, TENSOR_TYPES, operator_name

__all__ = ["Graph", "Survey", "read_graph", "survey"]

MAX_ENTRIES = 500_000  # vision models have under 1,000 tensors; language models under 20,000
_MAX_NAME_BYTES = 256  # of an operator
_MAX_TENSOR_NAME_BYTES = 16_384  # Keras joins the names of fused layers
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


@dataclass(frozen=True)
class Graph:
    """The inputs and outputs of a model, and for each the number of its tensor in the file."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    input_tensors: tuple[int, ...]
    output_tensors: tuple[int, ...]


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
            self._spend(1)
            at = start + 4 * number
            yield at + self.scalar("<I", at)

    def numbers(self, table: int, index: int, code: str) -> tuple[float, ...]:
        """Return a vector of numbers; `code` is struct's."""
        start, count = self.vector(table, index)
        self._spend(count)
        size = count * struct.calcsize(f"<{code}")
        if start + size > len(self._data):
            raise Rejected(
                f"the TFLite file is cut off or damaged: it points to byte {start + size} of {len(self._data)}"
            )
        return struct.unpack_from(f"<{count}{code}", self._data, start) if count else ()

    def _spend(self, entries: int) -> None:
        self._left -= entries
        if self._left < 0:
            raise Rejected(f"the TFLite file has over {MAX_ENTRIES} entries: it is damaged or made to be slow")

    def text(self, table: int, index: int, limit_bytes: int = _MAX_NAME_BYTES) -> str:
        start, size = self.vector(table, index)
        if size > limit_bytes or start + size > len(self._data):
            raise Rejected(f"the TFLite file is damaged: a name in it has {size} bytes")
        return bytes(self._data[start : start + size]).decode("utf-8", "replace")


def survey(data: bytes | memoryview) -> Survey:
    """Return what the TFLite file in `data` holds.

    Raises:
        Rejected: when it is no TFLite file, is cut off or is damaged.
    """
    reader, model = _open(data)
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
            name = _type_name(kind)
            buffer = reader.number(tensor, 2, "<I")
            size = buffers[buffer] if buffer < len(buffers) else 0
            if size:
                weights[name] += size
            else:
                activations[name] += 1
    if not operators:
        raise Rejected("the TFLite file holds no operator: there is nothing to run")
    return Survey(dict(operators), dict(activations), dict(weights))


def read_graph(data: bytes | memoryview) -> Graph:
    """Return the inputs and the outputs of the model's first graph, in the order and the words of an Interpreter.

    Only a quantization of the whole tensor, and not one for each channel, gives a scale and a zero point.

    Raises:
        Rejected: when it is no TFLite file, is cut off or is damaged.
    """
    reader, model = _open(data)
    graph = next(reader.tables(model, 2), None)
    if graph is None:
        raise Rejected("the TFLite file holds no graph: there is nothing to run")
    tensors = list(reader.tables(graph, 0))
    inputs, outputs = (tuple(int(number) for number in reader.numbers(graph, field, "i")) for field in (1, 2))
    return Graph(
        tuple(_spec_of(reader, tensors, number) for number in inputs),
        tuple(_spec_of(reader, tensors, number) for number in outputs),
        inputs,
        outputs,
    )


def _open(data: bytes | memoryview) -> tuple[_Reader, int]:
    """Return a reader, and where the model's table lies."""
    if len(data) < 8 or bytes(data[4:8]) != _IDENTIFIER:
        raise Rejected(f"this is no TFLite model: its bytes 4 to 8 are {bytes(data[4:8])!r} and not {_IDENTIFIER!r}")
    reader = _Reader(data)
    return reader, reader.scalar("<I", 0)


def _type_name(kind: int) -> str:
    return TENSOR_TYPES[kind] if 0 <= kind < len(TENSOR_TYPES) else f"type_{kind}"


def _spec_of(reader: _Reader, tensors: list[int], number: int) -> TensorSpec:
    """Return the spec of a graph's tensor by its number."""
    if not 0 <= number < len(tensors):
        raise Rejected(f"the TFLite file is damaged: it names tensor {number} of {len(tensors)}")
    tensor = tensors[number]
    shape, signature = reader.numbers(tensor, 0, "i"), reader.numbers(tensor, 7, "i")
    scales: tuple[float, ...] = ()
    zero_points: tuple[float, ...] = ()
    quantization = reader.field(tensor, 4)
    if quantization is not None:
        table = quantization + reader.scalar("<I", quantization)
        scales, zero_points = reader.numbers(table, 2, "f"), reader.numbers(table, 3, "q")
    whole = len(scales) == 1 and len(zero_points) == 1
    if whole and not math.isfinite(scales[0]):
        raise Rejected(f"the TFLite file is damaged: tensor {number} has the scale {scales[0]}")
    return TensorSpec(
        name=reader.text(tensor, 3, _MAX_TENSOR_NAME_BYTES),
        dtype=_type_name(reader.number(tensor, 1, "<b")),
        shape=tuple(int(size) for size in (signature if len(signature) == len(shape) else shape)),
        scale=scales[0] if whole else None,
        zero_point=int(zero_points[0]) if whole else None,
    )


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
