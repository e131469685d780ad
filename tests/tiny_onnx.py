"""Small ONNX models written byte by byte, so that tests need no package that writes them (onnx/onnx.proto)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["dense_onnx", "unary_onnx"]

FLOAT = 1  # TensorProto.DataType


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _value(name: str, shape: Sequence[int | str]) -> bytes:
    """Return a ValueInfoProto of float32; a text is a size that may be any."""
    sizes = b"".join(
        _bytes(1, _number(1, size) if isinstance(size, int) else _bytes(2, size.encode())) for size in shape
    )
    tensor = _number(1, FLOAT) + _bytes(2, sizes)
    return _bytes(1, name.encode()) + _bytes(2, _bytes(1, tensor))


def _constant(name: str, array: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> bytes:
    dims = b"".join(_number(1, size) for size in array.shape)
    return dims + _number(2, FLOAT) + _bytes(8, name.encode()) + _bytes(9, array.astype("<f4").tobytes())


def _node(operator: str, inputs: Sequence[str], output: str, attributes: bytes = b"") -> bytes:
    names = b"".join(_bytes(1, name.encode()) for name in inputs)
    return names + _bytes(2, output.encode()) + _bytes(4, operator.encode()) + attributes


def _model(nodes: Sequence[bytes], constants: Sequence[bytes], source: bytes, target: bytes) -> bytes:
    graph = b"".join(_bytes(1, node) for node in nodes) + _bytes(2, b"g")
    graph += b"".join(_bytes(5, constant) for constant in constants) + _bytes(11, source) + _bytes(12, target)
    return _number(1, 8) + _bytes(7, graph) + _bytes(8, _number(2, 13))  # IR 8, operators of set 13


def unary_onnx(operator: str = "Abs") -> bytes:
    """Return float32 [1, 4] -> one operator -> [1, 4]."""
    return _model([_node(operator, ["in"], "out")], [], _value("in", (1, 4)), _value("out", (1, 4)))


def dense_onnx(
    weights: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
    bias: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
    *,
    any_batch: bool = False,
) -> bytes:
    """Return float32 [1, n] -> Gemm with weights [m, n] and bias [m] -> [1, m]; the 1 may be any size."""
    outputs, inputs = weights.shape
    transposed = _bytes(5, _bytes(1, b"transB") + _number(3, 1) + _number(20, 2))
    batch: int | str = "n" if any_batch else 1
    return _model(
        [_node("Gemm", ["in", "weights", "bias"], "out", transposed)],
        [_constant("weights", weights), _constant("bias", bias)],
        _value("in", (batch, inputs)),
        _value("out", (batch, outputs)),
    )
