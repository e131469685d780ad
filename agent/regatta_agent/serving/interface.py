"""A model as its clients see it: names, types and shapes checked, real values to native ones and back, metadata.

Pure, over the `TensorSpec`s of the placed file. Two languages are spoken. *Native*: each tensor in the file's own
datatype, passed as it is. *Real*: FP32 (or FP16, FP64) tensors for quantized inputs, which are quantized here,
q = real / scale + zero_point (Jacob et al. 2018 eq. 1), rounded half to even and clipped. An answer speaks as its
request did: when any input came in real values, quantized outputs are answered as FP32. So a client that sends FP32
never notices which variant of a model a device placed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from regatta_agent.serving.inference import InferRequest, NamedTensor, WantedOutput
from regatta_agent.serving.spec import NonFinite
from regatta_agent.serving.tensors import Array, all_finite, datatype_of, decode_binary
from regatta_protocol.errors import Rejected
from regatta_protocol.plain import to_document
from regatta_protocol.processing import ImageInput, Processing
from regatta_protocol.values import TensorSpec
from regatta_runtimes.worker.session import dequantize, quantize

__all__ = ["ModelInterface", "body_limit_bytes", "image_input"]

_REAL = ("FP16", "FP32", "FP64")
_JSON_BYTES_PER_ELEMENT = 32  # "-1.2345678901234567e-38, " is 25 and some indentation; FP64 binary is 8
_OVERHEAD_BYTES = 65_536  # names, parameters and a header of the infer request
_DYNAMIC_SIZE = 64  # what a changeable dimension counts as when the body's limit is found


def body_limit_bytes(inputs: Sequence[TensorSpec]) -> int:
    """Return how long the body of an infer request may be: JSON of every input, with its overhead."""
    elements = 0
    for spec in inputs:
        count = 1
        for size in spec.shape:
            count *= _DYNAMIC_SIZE if size < 0 else size
        elements += count
    return _OVERHEAD_BYTES + elements * _JSON_BYTES_PER_ELEMENT


def image_input(inputs: Sequence[TensorSpec]) -> ImageInput | None:
    """Return how a picture becomes input 0 when no manifest says so, or None when it is no picture.

    Only [1 or -1, height, width, 1 or 3] is taken for one. Quantized: the pixel 0…255 becomes the integer itself
    (uint8) or minus 128 (int8), as TFLite's converters and the Coral models have it. Float: pixel / 255.
    """
    spec = inputs[0]
    if len(inputs) != 1 or len(spec.shape) != 4:
        return None
    batch, height, width, channels = spec.shape
    if batch not in (1, -1) or height < 1 or width < 1 or channels not in (1, 3):
        return None
    mean, scale = 0.0, 1.0 / 255.0
    if spec.scale is not None and spec.dtype in ("uint8", "int8"):
        mean = float((spec.zero_point or 0) + (128 if spec.dtype == "int8" else 0))
        scale = spec.scale
    elif spec.dtype in ("uint8", "int8"):
        mean, scale = (128.0 if spec.dtype == "int8" else 0.0), 1.0
    return ImageInput(height=height, width=width, channels=1 if channels == 1 else 3, mean=mean, scale=scale)


class ModelInterface:
    """The inputs and outputs of one placed model."""

    def __init__(
        self,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        labels: Sequence[str] = (),
        processing: Processing | None = None,
        non_finite: NonFinite = "reject",
    ) -> None:
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.labels = tuple(labels)
        self.processing = processing or Processing()
        self.image = self.processing.image
        self.non_finite: NonFinite = non_finite
        self._takes_any = non_finite == "pass"
        self._input_types = tuple(datatype_of(spec.dtype) for spec in inputs)
        self._output_types = tuple(datatype_of(spec.dtype) for spec in outputs)
        self._input_index = {spec.name: index for index, spec in enumerate(inputs)}
        self._output_index = {spec.name: index for index, spec in enumerate(outputs)}
        self._every_output = {
            binary: [(index, WantedOutput(spec.name, binary)) for index, spec in enumerate(outputs)]
            for binary in (False, True)
        }

    def to_native(self, request: InferRequest) -> tuple[list[Array], bool]:
        """Return the request's inputs in the model's order and dtypes, and whether it speaks in real values.

        Raises:
            Rejected: when one is missing, unknown, given twice, of a wrong shape or datatype, or not finite.
        """
        if request.raw is not None:
            return [self._raw(request.raw)], False
        given: dict[int, NamedTensor] = {}
        for tensor in request.inputs:
            index = self._input_index.get(tensor.name)
            if index is None:
                known = ", ".join(map(repr, self._input_index))
                raise Rejected(f"there is no input {tensor.name[:120]!r}: this model has {known}")
            if index in given:
                raise Rejected(f"input {tensor.name!r} is given twice")
            given[index] = tensor
        if len(given) < len(self.inputs):
            missing = [spec.name for index, spec in enumerate(self.inputs) if index not in given]
            raise Rejected(f"inputs are missing: {', '.join(map(repr, missing))}")
        natives, real = [], False
        for index in range(len(self.inputs)):
            native, was_real = self._native(index, given[index])
            natives.append(native)
            real = real or was_real
        return natives, real

    def _raw(self, body: memoryview) -> Array:
        spec = self.inputs[0]
        if len(self.inputs) != 1 or any(size < 0 for size in spec.shape):
            raise Rejected(
                "a body without JSON (Inference-Header-Content-Length: 0) is only for models with one input of a fixed "
                "shape: describe the tensors in JSON"
            )
        return self._finite(decode_binary(self._input_types[0], spec.shape, body), spec)

    def _native(self, index: int, tensor: NamedTensor) -> tuple[Array, bool]:
        spec, datatype = self.inputs[index], self._input_types[index]
        shape = tensor.array.shape
        if shape != spec.shape and not _fits(shape, spec.shape):
            raise Rejected(f"input {spec.name!r} has shape {list(spec.shape)} and {list(shape)} came")
        if tensor.datatype == datatype:
            return self._finite(tensor.array, spec), False
        if tensor.datatype in _REAL and (spec.scale is not None or datatype in _REAL):
            return quantize(self._finite(tensor.array, spec), spec), spec.scale is not None
        also = " or FP32 in real values" if spec.scale is not None else ""
        raise Rejected(f"input {spec.name!r} is {datatype}{also} and {tensor.datatype} came")

    def _finite(self, array: Array, spec: TensorSpec) -> Array:
        if not self._takes_any and not all_finite(array):
            raise Rejected(f"input {spec.name!r} holds NaN or infinity: remove them")
        return array

    def wanted(self, request: InferRequest) -> Sequence[tuple[int, WantedOutput]]:
        """Return the outputs that the request asks for, as (index, wish); all of them when it names none.

        Raises:
            Rejected: when one is unknown or named twice, or has no classes to name.
        """
        if not request.outputs:
            return self._every_output[request.binary_default]
        wanted: dict[int, WantedOutput] = {}
        for output in request.outputs:
            index = self._output_index.get(output.name)
            if index is None:
                known = ", ".join(map(repr, self._output_index))
                raise Rejected(f"there is no output {output.name[:120]!r}: this model has {known}")
            if index in wanted:
                raise Rejected(f"output {output.name!r} is asked for twice")
            if output.classes and (self._output_types[index] == "BYTES" or not self.outputs[index].shape):
                raise Rejected(f"output {output.name!r} has no classes: leave classification out")
            wanted[index] = output
        return list(wanted.items())

    def answer(
        self, natives: Sequence[Array], wanted: Sequence[tuple[int, WantedOutput]], *, real: bool
    ) -> list[tuple[NamedTensor, WantedOutput]]:
        """Return the tensors of the answer, each with how it is wanted."""
        tensors = []
        for index, wish in wanted:
            spec, datatype, array = self.outputs[index], self._output_types[index], natives[index]
            if wish.classes:
                array, datatype = self._classes(dequantize(array, spec), wish.classes), "BYTES"
            elif real and spec.scale is not None:
                array, datatype = dequantize(array, spec), "FP32"
            tensors.append((NamedTensor(spec.name, datatype, array), wish))
        return tensors

    def _classes(self, scores: Array, count: int) -> Array:
        """Return `score:index[:label]` of the greatest scores, [k] or [n, k] (Triton's classification extension)."""
        rows = scores.reshape(-1, scores.shape[-1])
        count = min(count, rows.shape[1])
        best = np.argsort(-rows, axis=1, kind="stable")[:, :count]
        greatest = rows[np.arange(len(rows))[:, np.newaxis], best]
        texts = np.empty(best.size, dtype=object)
        for place, (index, score) in enumerate(zip(best.ravel().tolist(), greatest.ravel().tolist(), strict=True)):
            label = f":{self.labels[index]}" if index < len(self.labels) else ""
            texts[place] = f"{score:.6f}:{index}{label}".encode()
        return texts.reshape((*scores.shape[:-1], count))

    def predicted_class(self, natives: Sequence[Array]) -> int | None:
        """Return the index of output 0's greatest element, or None when it is not one row of classes."""
        first = natives[0]
        if first.size < 2 or first.shape[-1] != first.size or first.dtype.kind not in "iuf":
            return None
        return int(first.argmax())

    def class_of(self, label: str) -> int | None:
        """Return the index of a label, or None when there is none such."""
        return self.labels.index(label) if label in self.labels else None

    def metadata(self, name: str, version: int, parameters: dict[str, Any]) -> dict[str, Any]:
        """Return the body of model metadata; a quantized tensor's scale and zero point are in its parameters."""
        shared: dict[str, Any] = dict(parameters)
        if self.image is not None:
            shared["input"] = to_document(self.image)
        shared["labels"] = len(self.labels)
        return {
            "name": name,
            "versions": [str(version)],
            "platform": "tflite",
            "inputs": [_tensor(*pair) for pair in zip(self.inputs, self._input_types, strict=True)],
            "outputs": [_tensor(*pair) for pair in zip(self.outputs, self._output_types, strict=True)],
            "parameters": shared,
        }


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Return whether a tensor of `shape` may be given where a size of -1 may be any from 1."""
    return len(shape) == len(wanted) and all(
        size == want or (want < 0 and size >= 1) for size, want in zip(shape, wanted, strict=True)
    )


def _tensor(spec: TensorSpec, datatype: str) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": spec.name, "datatype": datatype, "shape": list(spec.shape)}
    if spec.scale is not None:
        entry["parameters"] = {"scale": spec.scale, "zero_point": spec.zero_point or 0}
    return entry
