"""Least-squares refit of the layers behind pruned filters, on samples, without labels or training.

For a layer with input patches X (of the pruned model) and the original's pre-activation outputs Y on the same samples,
the weights W' = W + D with D minimizing |X·D − (Y − X·W − b)|² + λ·|D|² (He et al. 2017, section 3.1, with ridge toward
the sliced weights, so that few samples change little). Layers are refitted front to back, each on what the pruned and
already refitted layers before it really give.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from regatta_fleet.optimize.activations import record
from regatta_fleet.optimize.model_file import ModelTree, constant, model_bytes, operator_name, set_constant
from regatta_fleet.optimize.prune.filters import PrunedModel
from regatta_fleet.optimize.prune.patches import layer_patches, some_rows
from regatta_fleet.optimize.prune.reconstruction import RIDGE

__all__ = ["refit"]

Floats = npt.NDArray[np.float32]


def refit(original: ModelTree, pruned: PrunedModel, samples: Floats) -> int:
    """Refit `pruned.model` in place and return how many layers changed.

    Args:
        samples: real values [n, …] for input 0.
    """
    places = sorted({consumer.operator for group in pruned.slimmed for consumer in group.consumers})
    sources = [int(original.subgraphs[0].operators[place].inputs[0]) for place in places]
    wanted = record(model_bytes(original), samples, sources)
    kept_rows = _kept_outputs(original, pruned)
    for place, source in zip(places, sources, strict=True):
        given = record(model_bytes(pruned.model), samples, [source])[source]
        _refit_layer(original, pruned.model, place, wanted[source], given, kept_rows.get(place))
    return len(places)


def _refit_layer(
    original: ModelTree, model: ModelTree, place: int, wanted: Floats, given: Floats, rows: npt.NDArray[np.int64] | None
) -> None:
    operator = original.subgraphs[0].operators[place]
    kind = operator_name(original, operator)
    old_weights, old_bias = _parameters(original, operator)
    weights, bias = _parameters(model, model.subgraphs[0].operators[place])
    if rows is not None:
        old_weights, old_bias = old_weights[rows], old_bias[rows]
    kernel = (old_weights.shape[1], old_weights.shape[2]) if kind == "CONV_2D" else (1, 1)
    before, after = layer_patches(wanted, operator, kind, kernel), layer_patches(given, operator, kind, kernel)
    rows_used = some_rows(len(before))
    before, after = before[rows_used], after[rows_used]
    target = before.astype(np.float64) @ old_weights.reshape(len(old_weights), -1).T + old_bias
    flat = weights.reshape(len(weights), -1).astype(np.float64)
    features = np.column_stack([after.astype(np.float64), np.ones(len(after))])
    error = target - features @ np.column_stack([flat, bias]).T
    gram = features.T @ features
    scale = float(np.trace(gram)) / len(gram)
    if scale <= 0 or not np.isfinite(error).all():
        return
    change = np.linalg.solve(gram + RIDGE * scale * np.eye(len(gram)), features.T @ error).T
    graph = model.subgraphs[0]
    layer = graph.operators[place]
    fitted = (flat + change[:, :-1]).reshape(weights.shape).astype(np.float32)
    set_constant(model, graph.tensors[layer.inputs[1]], fitted)
    if len(layer.inputs) > 2 and layer.inputs[2] >= 0:
        set_constant(model, graph.tensors[layer.inputs[2]], (bias + change[:, -1]).astype(np.float32))


def _parameters(model: ModelTree, operator: Any) -> tuple[Floats, Floats]:  # noqa: ANN401  # schema.OperatorT
    tensors = model.subgraphs[0].tensors
    weights = constant(model, tensors[operator.inputs[1]])
    assert weights is not None  # coupling only names layers with constant weights
    bias = None
    if len(operator.inputs) > 2 and operator.inputs[2] >= 0:
        bias = constant(model, tensors[operator.inputs[2]])
    return weights, np.zeros(len(weights), np.float32) if bias is None else bias


def _kept_outputs(original: ModelTree, pruned: PrunedModel) -> dict[int, npt.NDArray[np.int64]]:
    """Return, by layer, which of its own filters are left, where some are gone."""
    producers = {
        int(operator.inputs[1]): place
        for place, operator in enumerate(original.subgraphs[0].operators)
        if operator_name(original, operator) in ("CONV_2D", "FULLY_CONNECTED")
    }
    return {producers[tensor]: group.kept for group in pruned.slimmed for tensor in group.filters}
