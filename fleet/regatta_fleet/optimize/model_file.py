"""A .tflite file as a tree of objects: read, made safe for other tools, checked, written.

The tree is the flatbuffers object API of the TFLite schema that ships with ai-edge-litert (`ModelT` and its parts);
arrays in it are numpy. Nothing here runs a model: a crafted file can at worst be refused.

Invariants:
- what `read_model` returns has operator codes in `builtinCode`, a signature, and tensor names that are all different;
- `model_bytes` aligns the weights to 16 bytes, as the schema's `force_align` asks (the generated code does not).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from regatta_protocol.durable import read_bounded, write_durably
from regatta_protocol.errors import Rejected
from regatta_protocol.manifest import MAX_FILE_BYTES

__all__ = [
    "Array",
    "ModelTree",
    "TensorTree",
    "check_float",
    "constant",
    "model_bytes",
    "normalize",
    "operator_name",
    "parse_model",
    "read_model",
    "schema",
    "set_constant",
    "tensor_name",
    "text_of",
    "write_model",
]

ModelTree = Any  # schema.ModelT: the generated code has no types
TensorTree = Any  # schema.TensorT
Array = npt.NDArray[Any]

_IDENTIFIER = b"TFL3"
_WEIGHT_ALIGNMENT_BYTES = 16  # schema.fbs: Buffer.data (force_align: 16)
_PLACEHOLDER = 127  # BuiltinOperator.PLACEHOLDER_FOR_GREATER_OP_CODES: what deprecatedBuiltinCode holds above 126

_OPERATOR_NAMES: dict[int, str] = {
    code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)
}
_TYPE_NAMES: dict[int, str] = {code: name for name, code in vars(schema.TensorType).items() if isinstance(code, int)}
_DTYPES: dict[int, npt.DTypeLike] = {
    schema.TensorType.FLOAT32: np.float32,
    schema.TensorType.FLOAT16: np.float16,
    schema.TensorType.FLOAT64: np.float64,
    schema.TensorType.INT8: np.int8,
    schema.TensorType.INT16: np.int16,
    schema.TensorType.INT32: np.int32,
    schema.TensorType.INT64: np.int64,
    schema.TensorType.UINT8: np.uint8,
    schema.TensorType.BOOL: np.bool_,
}
_RESOLVED_CUSTOM = {"AudioSpectrogram", "Mfcc", "NumericVerify", "TFLite_Detection_PostProcess"}  # kernels/register.cc
_QUANTIZED_WEIGHT_TYPES = {"INT4", "INT8", "UINT8", "INT16"}


class _AligningBuilder(flatbuffers.Builder):  # type: ignore[misc]  # flatbuffers has no types
    """Puts byte vectors, which hold the weights, at 16-byte boundaries."""

    def CreateNumpyVector(self, x: Array) -> int:  # flatbuffers' name
        if x.dtype != np.uint8:
            return int(super().CreateNumpyVector(x))
        self.Prep(_WEIGHT_ALIGNMENT_BYTES, x.size)
        return int(super().CreateNumpyVector(x))


def read_model(path: Path) -> ModelTree:
    """Return the model in the file, normalized.

    Raises:
        Rejected: when it is no whole .tflite file.
        TooLarge: when it is over 2 GiB.
        OSError: when it cannot be read.
    """
    model = parse_model(read_bounded(path, MAX_FILE_BYTES), str(path))
    normalize(model)
    return model


def parse_model(data: bytes, name: str = "the model") -> ModelTree:
    """Return the tree in `data` as it is, unnormalized.

    Raises:
        Rejected: when it is no whole .tflite file.
    """
    if data[4:8] != _IDENTIFIER:
        raise Rejected(f"{name} is no TFLite model: it lacks the identifier TFL3. Give a .tflite file")
    try:
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(data, 0))
    except Exception as err:  # generated code fails in many ways on bytes that are cut off
        raise Rejected(f"{name} is cut off or damaged ({type(err).__name__}: {err}): fetch it again") from err
    _take_in_data(model, data, name)
    _check_tree(model, name)
    return model


def model_bytes(model: ModelTree) -> bytes:
    """Return the model as the content of a .tflite file."""
    builder = _AligningBuilder(1024)
    builder.Finish(model.Pack(builder), _IDENTIFIER)
    return bytes(builder.Output())


def write_model(model: ModelTree, path: Path) -> None:
    """Write the model to `path`, whole or not at all."""
    write_durably(path, model_bytes(model), mode=0o644)


def operator_name(model: ModelTree, operator: Any) -> str:  # noqa: ANN401  # schema.OperatorT
    """Return the operator's name in the schema, for example CONV_2D; of a custom one, its own name."""
    code = model.operatorCodes[operator.opcodeIndex]
    if code.builtinCode == schema.BuiltinOperator.CUSTOM:
        return (code.customCode or b"CUSTOM").decode(errors="replace")
    return _OPERATOR_NAMES.get(code.builtinCode, f"builtin {code.builtinCode}")


def text_of(name: bytes | str | None) -> str:
    """Return a name of the tree as text; flatbuffers gives bytes, and None for an absent one."""
    if name is None:
        return ""
    return name if isinstance(name, str) else name.decode(errors="replace")


def tensor_name(tensor: TensorTree) -> str:
    """Return the tensor's name as text."""
    return text_of(tensor.name)


def constant(model: ModelTree, tensor: TensorTree) -> Array | None:
    """Return the values of a constant tensor in its shape (a copy), or None for one that is computed."""
    data = model.buffers[tensor.buffer].data
    if data is None or len(data) == 0 or tensor.type not in _DTYPES:
        return None
    values = np.asarray(data, np.uint8).view(_DTYPES[tensor.type])
    shape = () if tensor.shape is None else tuple(int(size) for size in tensor.shape)
    return values.reshape(shape).copy()


def set_constant(model: ModelTree, tensor: TensorTree, values: Array) -> None:
    """Give a constant tensor new values and their shape; tensors that shared its buffer keep the old ones."""
    if sum(other.buffer == tensor.buffer for graph in model.subgraphs for other in graph.tensors) > 1:
        model.buffers.append(schema.BufferT())
        tensor.buffer = len(model.buffers) - 1
    data = np.ascontiguousarray(values, _DTYPES[tensor.type])
    model.buffers[tensor.buffer].data = data.reshape(-1).view(np.uint8)
    tensor.shape = np.array(values.shape, np.int32)
    tensor.shapeSignature = None


def normalize(model: ModelTree) -> list[str]:
    """Change what newer tools stumble over, and return what was changed, in words.

    Files from before TensorFlow 2.4 keep the operator in `deprecatedBuiltinCode`, which ai-edge-quantizer does not
    read: its recipe would silently change nothing. It also needs a signature, and names that are all different.
    """
    changes: list[str] = []
    moved = 0
    for code in model.operatorCodes:
        if code.builtinCode == 0 and 0 < code.deprecatedBuiltinCode < _PLACEHOLDER:
            code.builtinCode = code.deprecatedBuiltinCode
            moved += 1
    if moved:
        changes.append(f"{moved} operator codes moved out of deprecatedBuiltinCode")
    renamed = _name_apart(model)
    if renamed:
        changes.append(f"{renamed} tensors renamed apart")
    if not model.signatureDefs and len(model.subgraphs) == 1:
        model.signatureDefs = [_signature(model.subgraphs[0])]
        changes.append("signature serving_default added")
    return changes


def check_float(model: ModelTree, name: str) -> None:
    """Refuse what the optimizer cannot start from.

    Raises:
        Rejected: naming the tensor or operator: several subgraphs or signatures, operators that no runtime has built
            in, shapes that change beyond the batch, weights that are quantized already, NaN or infinite.
    """
    if len(model.subgraphs) != 1:
        raise Rejected(f"{name} has {len(model.subgraphs)} subgraphs (control flow): give a model with one")
    if len(model.signatureDefs or []) > 1:
        raise Rejected(f"{name} has {len(model.signatureDefs)} signatures: export it with the one that devices call")
    graph = model.subgraphs[0]
    for operator in graph.operators:
        code, kind = model.operatorCodes[operator.opcodeIndex].builtinCode, operator_name(model, operator)
        if code == schema.BuiltinOperator.CUSTOM and kind not in _RESOLVED_CUSTOM:
            made = ", ".join(repr(tensor_name(graph.tensors[index])) for index in operator.outputs)
            raise Rejected(f"{name}: operator {kind}, which makes {made}, is not built in: convert without custom ops")
    for tensor in graph.tensors:
        label = f"tensor {tensor_name(tensor)!r}"
        if tensor.shapeSignature is not None and any(int(size) < 0 for size in tensor.shapeSignature[1:]):
            raise Rejected(f"{name}: {label} has a dynamic shape {list(tensor.shapeSignature)}: export fixed shapes")
        kind = _TYPE_NAMES.get(tensor.type, "?")
        if kind in _QUANTIZED_WEIGHT_TYPES and tensor.quantization is not None and _has_scale(tensor.quantization):
            raise Rejected(f"{name} is quantized already ({label} is {kind}): give the float model it was made of")
        values = constant(model, tensor)
        if values is not None and values.dtype == np.float16:
            raise Rejected(f"{name} is float16 already ({label}): give the float32 model it was made of")
        if values is not None and values.dtype.kind == "f" and not np.isfinite(values).all():
            count = int((~np.isfinite(values)).sum())
            raise Rejected(f"{name}: {label} has {count} weights that are NaN or infinite: train or export it again")
    for index in graph.inputs:
        tensor = graph.tensors[index]
        if tensor.type != schema.TensorType.FLOAT32:
            kind = _TYPE_NAMES.get(tensor.type, "?")
            raise Rejected(f"{name}: input {tensor_name(tensor)!r} is {kind}: the optimizer starts from FLOAT32 inputs")


def _take_in_data(model: ModelTree, data: bytes, name: str) -> None:
    """Put what lies behind the flatbuffer into the tree: schema.fbs, Buffer.offset and size, for files near 2 GiB.

    ai-edge-quantizer writes some far smaller files so (VWW in float16).
    """
    for place, buffer in enumerate(model.buffers or []):
        if not buffer.offset or not buffer.size:  # 0: none; 1 stands for a place not filled in yet, as its size is 0
            continue
        if buffer.offset + buffer.size > len(data):
            raise Rejected(
                f"{name} is cut off: buffer {place} ends at byte {buffer.offset + buffer.size} of {len(data)}"
            )
        buffer.data = np.frombuffer(data, np.uint8, buffer.size, buffer.offset).copy()
        buffer.offset = buffer.size = 0


def _check_tree(model: ModelTree, name: str) -> None:
    """Refuse a tree whose indices lead nowhere; the generated code reads such files without complaint."""
    if not model.subgraphs or not model.buffers or model.operatorCodes is None:
        raise Rejected(f"{name} holds no graph: it is cut off or empty")
    for graph in model.subgraphs:
        tensors = graph.tensors or []
        used: list[Sequence[int]] = [graph.inputs, graph.outputs]
        for operator in graph.operators or []:
            if not 0 <= operator.opcodeIndex < len(model.operatorCodes):
                raise Rejected(f"{name} is damaged: an operator has code {operator.opcodeIndex} of none")
            used += [operator.inputs, operator.outputs]
        for indices in used:
            if indices is not None and any(not -1 <= int(index) < len(tensors) for index in indices):
                raise Rejected(f"{name} is damaged: an operator names a tensor that is not there")
        for tensor in tensors:
            if not 0 <= tensor.buffer < len(model.buffers):
                raise Rejected(f"{name} is damaged: tensor {tensor_name(tensor)!r} has buffer {tensor.buffer} of none")
            _check_length(model, tensor, name)


def _check_length(model: ModelTree, tensor: TensorTree, name: str) -> None:
    data = model.buffers[tensor.buffer].data
    if data is None or len(data) == 0 or tensor.type not in _DTYPES or tensor.sparsity is not None:
        return
    shape = [] if tensor.shape is None else [int(size) for size in tensor.shape]
    expected = int(np.prod(shape, dtype=np.int64)) * np.dtype(_DTYPES[tensor.type]).itemsize
    if expected != len(data):
        raise Rejected(
            f"{name} is damaged: tensor {tensor_name(tensor)!r} of shape {shape} has {len(data)} bytes, not {expected}"
        )


def _name_apart(model: ModelTree) -> int:
    renamed = 0
    for graph in model.subgraphs:
        seen: set[bytes] = set()
        for index, tensor in enumerate(graph.tensors):
            if not tensor.name or bytes(tensor_name(tensor).encode()) in seen:
                tensor.name = f"{tensor_name(tensor) or 'tensor'}_{index}".encode()
                renamed += 1
            seen.add(tensor_name(tensor).encode())
    return renamed


def _signature(graph: Any) -> Any:  # noqa: ANN401  # schema.SubGraphT -> schema.SignatureDefT
    signature = schema.SignatureDefT()
    signature.signatureKey = b"serving_default"
    signature.subgraphIndex = 0
    signature.inputs = [_tensor_map(f"input_{place}", index) for place, index in enumerate(graph.inputs)]
    signature.outputs = [_tensor_map(f"output_{place}", index) for place, index in enumerate(graph.outputs)]
    return signature


def _tensor_map(name: str, index: int) -> Any:  # noqa: ANN401  # schema.TensorMapT
    entry = schema.TensorMapT()
    entry.name = name.encode()
    entry.tensorIndex = int(index)
    return entry


def _has_scale(quantization: Any) -> bool:  # noqa: ANN401  # schema.QuantizationParametersT
    return quantization.scale is not None and len(quantization.scale) > 0
