"""Filter pruning of a float .tflite without training: the least important filters go, with all that they touch.

Importance is judged per group of coupled channels (`coupling`). By norm: of each filter, divided by the mean of its
layer so that layers weigh alike, summed over the layers that produce the group (Li et al. 2017 for L1, He et al. 2018
for L2). By reconstruction, given samples: by what the following layers lose (`reconstruction`), which keeps far more
accuracy. The following layers are then refitted by least squares on samples (`refit`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from regatta_fleet.optimize.model_file import ModelTree, constant, set_constant
from regatta_fleet.optimize.prune.coupling import Consumer, Group, channel_groups
from regatta_fleet.optimize.prune.reconstruction import Activations, record_inputs, removal_order
from regatta_protocol.errors import Misuse, Rejected

__all__ = ["Criterion", "PrunedModel", "Slimmed", "filter_norms", "prune_filters"]

Criterion = Literal["l1", "l2", "reconstruction"]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Slimmed:
    """A group that lost channels: `kept` int64, ascending, of the `size` that there were."""

    size: int
    kept: npt.NDArray[np.int64]
    consumers: tuple[Consumer, ...]
    filters: tuple[int, ...]  # tensors of the weights that lost rows


@dataclass(frozen=True)
class PrunedModel:
    """The smaller model, and what was taken out of the original."""

    model: ModelTree
    slimmed: tuple[Slimmed, ...]

    @property
    def removed(self) -> int:
        """How many channels are gone."""
        return sum(group.size - len(group.kept) for group in self.slimmed)


def filter_norms(model: ModelTree, group: Group, criterion: Literal["l1", "l2"]) -> npt.NDArray[np.float64]:
    """Return the importance of each channel of the group by its filters' norms, float64 [size] >= 0."""
    total = np.zeros(group.size)
    for member in group.filters:
        weights = constant(model, model.subgraphs[0].tensors[member.tensor])
        if weights is None:
            raise Rejected(f"the weights of tensor {member.tensor} are not constant: this layer cannot be pruned")
        flat = weights.reshape(len(weights), -1).astype(np.float64)
        norms = np.abs(flat).sum(1) if criterion == "l1" else np.sqrt((flat**2).sum(1))
        total += norms / max(float(norms.mean()), np.finfo(np.float64).tiny)
    return total


def prune_filters(
    model: ModelTree, ratio: float, criterion: Criterion = "l2", samples: Floats | None = None
) -> PrunedModel:
    """Return the model without the least important `ratio` of every group's filters; `model` stays as it is.

    Args:
        ratio: in (0, 1). At least one filter of each group is kept.
        samples: real values [n, …] for input 0, which `reconstruction` needs.

    Raises:
        Rejected: when the ratio is out of range, or nothing can be pruned; the text says what stands in the way.
    """
    if not 0 < ratio < 1:
        raise Rejected(f"cannot prune a share of {ratio}: give one above 0 and below 1")
    groups = channel_groups(model)
    counts = [(group, min(group.size - 1, int(group.size * ratio))) for group in groups if group.fixed is None]
    chosen = [(group, count) for group, count in counts if group.filters and count > 0]
    if not chosen:
        raise Rejected(f"nothing to prune at a share of {ratio}: {_obstacles(groups)}")
    activations: Activations | None = None
    if criterion == "reconstruction":
        if samples is None:
            raise Misuse("pruning by reconstruction needs samples")
        activations = record_inputs(model, [group for group, _ in chosen], samples)
    pruned = copy.deepcopy(model)
    slimmed = []
    for group, count in chosen:
        if activations is not None and group.consumers:
            gone = removal_order(model, group, count, activations)
        else:
            norms = filter_norms(model, group, "l1" if criterion == "l1" else "l2")
            gone = np.argsort(norms, kind="stable")[:count]
        kept = np.setdiff1d(np.arange(group.size), gone)
        _slice_group(pruned, group, kept)
        filters = tuple(member.tensor for member in group.filters)
        slimmed.append(Slimmed(group.size, kept, tuple(group.consumers), filters))
    return PrunedModel(pruned, tuple(slimmed))


def _slice_group(model: ModelTree, group: Group, kept: npt.NDArray[np.int64]) -> None:
    """Take the channels out of every tensor that holds them."""
    graph = model.subgraphs[0]
    for member in group.filters + group.followers:
        _slice(model, member.tensor, member.axis, kept)
    for consumer in group.consumers:
        places = (np.arange(consumer.block)[:, None] * group.size + kept[None, :]).reshape(-1)
        _slice(model, consumer.weights, consumer.axis, places)
    for tensor, block in group.activations.items():
        _resize_last(graph.tensors[tensor], block * len(kept))
    for place in group.reshapes:
        operator = graph.operators[place]
        shape = [int(size) for size in graph.tensors[operator.outputs[0]].shape]
        if operator.builtinOptions is not None and operator.builtinOptions.newShape is not None:
            operator.builtinOptions.newShape = _retarget(operator.builtinOptions.newShape, shape[-1])
        if len(operator.inputs) > 1:
            target = graph.tensors[operator.inputs[1]]
            values = constant(model, target)
            if values is not None:
                set_constant(model, target, np.array(_retarget(values, shape[-1]), np.int32))


def _retarget(shape: Sequence[int] | npt.NDArray[np.int32], last: int) -> list[int]:
    """Return a RESHAPE's target with another last size; -1 stays, for it follows by itself."""
    sizes = [int(size) for size in shape]
    if sizes and sizes[-1] >= 0:
        sizes[-1] = last
    return sizes


def _slice(model: ModelTree, index: int, axis: int, places: npt.NDArray[np.int64]) -> None:
    tensor = model.subgraphs[0].tensors[index]
    values = constant(model, tensor)
    if values is not None:
        set_constant(model, tensor, np.take(values, places, axis))


def _resize_last(tensor: object, size: int) -> None:
    shape = np.array(tensor.shape, np.int32)  # type: ignore[attr-defined]  # schema.TensorT has no types
    shape[-1] = size
    tensor.shape = shape  # type: ignore[attr-defined]
    signature = tensor.shapeSignature  # type: ignore[attr-defined]
    if signature is not None and len(signature):
        changed = np.array(signature, np.int32)
        changed[-1] = size
        tensor.shapeSignature = changed  # type: ignore[attr-defined]


def _obstacles(groups: Sequence[Group]) -> str:
    reasons = sorted({group.fixed for group in groups if group.fixed and group.filters})
    small = sum(group.fixed is None and bool(group.filters) for group in groups)
    parts = [f"layers are held since {reason}" for reason in reasons]
    if small:
        parts.append(f"{small} groups have too few filters")
    return "; ".join(parts) or "the model has no convolution or fully connected layer"
