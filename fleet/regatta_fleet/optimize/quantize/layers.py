"""The layers of a model: which operators hold weights, and in what precision. Pure over the tree."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import numpy as np

from regatta_fleet.optimize.model_file import (
    ModelTree,
    TensorTree,
    constant,
    operator_name,
    schema,
    set_constant,
    tensor_name,
)
from regatta_protocol.errors import Rejected

__all__ = ["Layer", "check_changed", "layers", "stem_layers", "with_ranges"]

_WEIGHTS_PLACE = 1  # the input of every kind below that holds its weights
_CHANNEL_AXIS = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 0, "TRANSPOSE_CONV": 0}
_KINDS = {*_CHANNEL_AXIS, "BATCH_MATMUL", "EMBEDDING_LOOKUP"}
_LEAST_RANGE = 1e-3  # of the layer's greatest weight: 60 dB under it, and its bias still fits in int32
_DEAD = 1e-6  # of the layer's greatest weight: 120 dB under it
_PRECISIONS = {
    schema.TensorType.FLOAT32: "float32",
    schema.TensorType.FLOAT16: "float16",
    schema.TensorType.INT8: "int8",
    schema.TensorType.INT4: "int4",
}


@dataclass(frozen=True)
class Layer:
    """An operator with constant weights. `place` counts in its own model; `name` is its output tensor's."""

    place: int
    name: str
    kind: str
    weights: int  # how many
    precision: str


def layers(model: ModelTree) -> tuple[Layer, ...]:
    """Return the layers of the model's first subgraph, in the order of the graph.

    Weights behind a DEQUANTIZE count in the precision that they are stored in.
    """
    graph = model.subgraphs[0]
    stored = {
        int(operator.outputs[0]): int(operator.inputs[0])
        for operator in graph.operators
        if operator_name(model, operator) == "DEQUANTIZE"
    }
    found = []
    for place, operator in enumerate(graph.operators):
        kind = operator_name(model, operator)
        if kind not in _KINDS or len(operator.inputs) <= _WEIGHTS_PLACE:
            continue
        index = int(operator.inputs[_WEIGHTS_PLACE])
        weights = graph.tensors[stored.get(index, index)]
        if not _is_constant(model, weights):
            continue
        count = math.prod(int(size) for size in weights.shape)
        name = tensor_name(graph.tensors[operator.outputs[0]])
        found.append(Layer(place, name, kind, count, _PRECISIONS.get(weights.type, "other")))
    return tuple(found)


def stem_layers(model: ModelTree) -> tuple[Layer, ...]:
    """Return the convolutions over a single channel, as first layers on sound or gray pictures are."""
    graph = model.subgraphs[0]

    def channels(layer: Layer) -> int:
        weights = graph.tensors[graph.operators[layer.place].inputs[_WEIGHTS_PLACE]]
        return int(weights.shape[-1])

    return tuple(layer for layer in layers(model) if layer.kind == "CONV_2D" and channels(layer) == 1)


def check_changed(original: ModelTree, result: ModelTree) -> tuple[Layer, ...]:
    """Return the layers with the original's names and places and the result's precisions.

    Raises:
        Rejected: when no weights changed, or a layer is gone, or holds scales that are no numbers above 0.
    """
    before, after = layers(original), layers(result)
    if len(before) != len(after):
        raise Rejected(f"quantization turned {len(before)} layers with weights into {len(after)}")
    if all(layer.precision == "float32" for layer in after):
        kinds = sorted({operator_name(original, operator) for operator in original.subgraphs[0].operators})
        raise Rejected(
            f"quantization changed none of the {len(before)} layers with weights: it does not know them "
            f"(operators: {', '.join(kinds)})"
        )
    for tensor in result.subgraphs[0].tensors:
        scale = None if tensor.quantization is None else tensor.quantization.scale
        if scale is not None and not (np.isfinite(scale).all() and np.all(np.asarray(scale) > 0)):
            raise Rejected(f"tensor {tensor_name(tensor)!r} was quantized with a scale that is no number above 0")
    return tuple(
        Layer(old.place, old.name, old.kind, old.weights, new.precision) for old, new in zip(before, after, strict=True)
    )


def with_ranges(model: ModelTree) -> tuple[ModelTree, int]:
    """Return the model with a range for every channel of weights, and how many channels had none.

    A channel of next to nothing (a dead filter; MLPerf Tiny's VWW has 80 to 230 in each late layer, of 1e-30) would
    get a scale that cannot hold the channel's bias in int32, or none: two such channels of eight brought a small model
    from 37 to 5 dB. One of its weights becomes a thousandth of the layer's greatest. The model itself stays as it is.
    """
    changed, channels = model, 0
    for place, operator in enumerate(model.subgraphs[0].operators):
        axis = _CHANNEL_AXIS.get(operator_name(model, operator))
        if axis is None:
            continue
        weights = constant(model, model.subgraphs[0].tensors[operator.inputs[_WEIGHTS_PLACE]])
        if weights is None or weights.dtype != np.float32 or weights.ndim <= axis:
            continue
        by_channel = np.moveaxis(weights, axis, 0).reshape(weights.shape[axis], -1)
        greatest = np.abs(by_channel).max(1)
        dead = greatest <= _DEAD * greatest.max()
        if not dead.any():
            continue
        if changed is model:
            changed = copy.deepcopy(model)
        first = (0,) * axis + (dead,) + (0,) * (weights.ndim - axis - 1)
        weights[first] = _LEAST_RANGE * (float(np.abs(weights).max()) or 1.0)
        graph = changed.subgraphs[0]
        set_constant(changed, graph.tensors[graph.operators[place].inputs[_WEIGHTS_PLACE]], weights)
        channels += int(dead.sum())
    return changed, channels


def _is_constant(model: ModelTree, tensor: TensorTree) -> bool:
    data = model.buffers[tensor.buffer].data
    return data is not None and len(data) > 0
