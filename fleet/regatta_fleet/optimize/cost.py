"""Counts what one inference costs: multiply-accumulates and weights. Pure over the tree; nothing is measured."""

from __future__ import annotations

import math
from typing import Any

from regatta_fleet.optimize.model_file import ModelTree, operator_name

__all__ = ["count_macs", "count_weights", "operator_macs"]


def count_macs(model: ModelTree) -> int:
    """Return the multiply-accumulates of convolutions and fully connected layers; the rest is small beside them."""
    return sum(operator_macs(model, operator) for operator in model.subgraphs[0].operators)


def operator_macs(model: ModelTree, operator: Any) -> int:  # noqa: ANN401  # schema.OperatorT
    """Return the multiply-accumulates of one operator, 0 for what is no such layer."""
    graph = model.subgraphs[0]
    kind = operator_name(model, operator)
    if kind not in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
        return 0
    weights = [int(size) for size in graph.tensors[operator.inputs[1]].shape]
    outputs = math.prod(int(size) for size in graph.tensors[operator.outputs[0]].shape)
    # each output needs one filter: [out, kh, kw, in] or [out, in]; depthwise keeps its channels on the last axis
    return outputs * math.prod(weights[:-1] if kind == "DEPTHWISE_CONV_2D" else weights[1:])


def count_weights(model: ModelTree) -> int:
    """Return how many numbers the constants of the graph hold."""
    return sum(
        math.prod(int(size) for size in tensor.shape)
        for graph in model.subgraphs
        for tensor in graph.tensors
        if tensor.shape is not None
        and model.buffers[tensor.buffer].data is not None
        and len(model.buffers[tensor.buffer].data)
    )
