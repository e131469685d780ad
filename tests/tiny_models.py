"""Small TFLite models built from the schema, for tests: sound ones, and ones that no runtime can run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

__all__ = ["dense_model", "shared_data", "unary_model"]

_TYPES = {"float32": 0, "int8": 9}


def shared_data() -> Path | None:
    """Return the folder of real models that lies beside the repository, or None."""
    here = Path(__file__).resolve().parents[1]
    named = os.environ.get("REGATTA_SHARED")
    folders = [Path(named)] if named else [here.parent / "shared", here.parent.parent / "shared"]
    return next((folder / "data" for folder in folders if (folder / "data").is_dir()), None)


def _tensor(name: str, shape: Sequence[int], buffer: int) -> Any:
    tensor = schema.TensorT()
    tensor.name, tensor.shape, tensor.buffer, tensor.type = name.encode(), list(shape), buffer, _TYPES["float32"]
    return tensor


def _buffer(array: np.ndarray[Any, Any] | None) -> Any:
    buffer = schema.BufferT()
    if array is not None:
        buffer.data = np.frombuffer(array.astype(np.float32).tobytes(), dtype=np.uint8)
    return buffer


def _pack(code: Any, tensors: list[Any], buffers: list[Any], inputs: list[int], options: Any | None) -> bytes:
    operator = schema.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, inputs, [len(tensors) - 1]
    if options is not None:
        operator.builtinOptionsType, operator.builtinOptions = options
    graph = schema.SubGraphT()
    graph.tensors, graph.inputs, graph.outputs, graph.operators = tensors, [0], [len(tensors) - 1], [operator]
    model = schema.ModelT()
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], buffers
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def unary_model(builtin: int = 101, custom: str | None = None, width: int = 4) -> bytes:
    """Return float32 [1, width] -> one operator -> [1, width]; by default ABS (builtin 101)."""
    code = schema.OperatorCodeT()
    code.deprecatedBuiltinCode, code.builtinCode, code.version = min(builtin, 127), builtin, 1
    if custom is not None:
        code.deprecatedBuiltinCode = code.builtinCode = 32
        code.customCode = custom.encode()
    tensors = [_tensor("in", (1, width), 0), _tensor("out", (1, width), 0)]
    return _pack(code, tensors, [_buffer(None)], [0], None)


def dense_model(weights: np.ndarray[Any, Any], bias: np.ndarray[Any, Any], *, any_batch: bool = False) -> bytes:
    """Return float32 [1, n] -> FULLY_CONNECTED with weights [m, n] and bias [m] -> [1, m]; the 1 may be any size."""
    code = schema.OperatorCodeT()
    code.deprecatedBuiltinCode = code.builtinCode = 9
    code.version = 1
    outputs, inputs = weights.shape
    tensors = [
        _tensor("in", (1, inputs), 0),
        _tensor("weights", weights.shape, 1),
        _tensor("bias", bias.shape, 2),
        _tensor("out", (1, outputs), 0),
    ]
    if any_batch:
        for tensor in (tensors[0], tensors[-1]):
            tensor.shapeSignature = [-1, tensor.shape[1]]
    options = schema.FullyConnectedOptionsT()
    buffers = [_buffer(None), _buffer(weights), _buffer(bias)]
    return _pack(code, tensors, buffers, [0, 1, 2], (schema.BuiltinOptions.FullyConnectedOptions, options))
