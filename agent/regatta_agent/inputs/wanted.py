"""What a model takes, from its metadata, and what an array then is: its own samples, pictures or sounds. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regatta_agent.serving.tensors import Array
from regatta_protocol.errors import Rejected

__all__ = ["Wanted", "wanted_by"]


_ALSO = {
    "image": " or a picture, UINT8 [height, width, channels]",
    "audio": " or a sound, INT16 or FP32 [n]",
}


@dataclass(frozen=True)
class Wanted:
    """Input 0 without the leading 1, and what else is prepared in the worker: image, audio or tensors (nothing).

    `sample_shape` is None when only that can be sent: the model has several inputs, or one of changeable size.
    """

    model: str
    sample_shape: tuple[int, ...] | None
    kind: str

    def split(self, array: Array, name: str) -> Sequence[Array] | Array:
        """Return the samples in an array, one an element, without copying it.

        Raises:
            Rejected: when it holds none.
        """
        shape = self.sample_shape
        if shape is not None:
            size = math.prod(shape)
            if array.shape in (shape, (size,)):
                return [array.reshape(shape)]
            if array.ndim >= 2 and array.shape[0] > 0 and array.shape[1:] in (shape, (size,), (1, *shape)):
                return array.reshape((array.shape[0], *shape))
        if array.size and self.kind == "image" and array.dtype == np.uint8 and array.ndim in (2, 3, 4):
            return array if array.ndim == 4 else [array]
        if array.size and self.kind == "audio" and array.dtype in (np.int16, np.float32) and array.ndim in (1, 2):
            return array if array.ndim == 2 else [array]
        if shape is not None and array.size == math.prod(shape):  # a picture's rows, for example 8 lines of 8 numbers
            return [array.reshape(shape)]
        takes = "" if shape is None else f" {list(shape)}"
        raise Rejected(
            f"{name} has shape {list(array.shape)} of {array.dtype} and a sample of this model is{takes}"
            f"{_ALSO.get(self.kind, '')}"
        )


def wanted_by(metadata: Mapping[str, Any]) -> Wanted:
    """Return what the model takes.

    Raises:
        Rejected: when neither its own inputs nor a picture or a sound can be read from files.
    """
    inputs: Sequence[Mapping[str, Any]] = metadata["inputs"]
    kind = str(metadata.get("parameters", {}).get("processing", {}).get("input", "tensors"))
    shape = tuple(int(size) for size in inputs[0]["shape"])
    sample = shape[1:] if len(shape) > 1 and shape[0] in (1, -1) else shape
    if len(inputs) == 1 and all(size >= 1 for size in sample):
        return Wanted(str(metadata["name"]), sample, kind)
    if kind != "tensors":
        return Wanted(str(metadata["name"]), None, kind)
    if len(inputs) != 1:
        raise Rejected(f"{metadata['name']} has {len(inputs)} inputs: use regatta_agent.client for such models")
    raise Rejected(f"{metadata['name']} takes {list(shape)}, of changeable size: use regatta_agent.client")
