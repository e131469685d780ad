"""Filter pruning of a float .tflite without training: the least important filters go, with all that they touch.

Importance is judged per group of coupled channels (`coupling`): by the weights alone (`importance`); by scores that the
caller brings, such as Taylor's (`train.taylor`); or, given samples, by what the following layers lose
(`reconstruction`), which keeps far more accuracy without training. The following layers are then refitted by least
squares on samples (`refit`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from regatta_fleet.optimize.model_file import ModelTree, constant, operator_name, set_constant
from regatta_fleet.optimize.prune.coupling import Consumer, Group, Span, channel_groups
from regatta_fleet.optimize.prune.importance import WeightCriterion, weight_importance
from regatta_fleet.optimize.prune.reconstruction import Activations, Removal, record_inputs, removal_order
from regatta_protocol.errors import Misuse, Rejected

__all__ = [
    "Criterion",
    "PrunedModel",
    "Scores",
    "Slimmed",
    "check_share",
    "prunable_groups",
    "prune_filters",
    "removals",
    "without_channels",
]

Criterion = Literal[WeightCriterion, "reconstruction"]
Floats = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]
Scores = Callable[[Group], npt.NDArray[np.float64]]  # the importance of each of a group's channels, [size]


@dataclass(frozen=True)
class Slimmed:
    """A group that lost channels: `kept` int64, ascending, of the `size` that there were."""

    size: int
    kept: Places
    consumers: tuple[Consumer, ...]
    filters: tuple[int, ...]  # tensors of the weights that lost rows
    activations: tuple[Span, ...]  # where the channels lay in what the original computes


@dataclass(frozen=True)
class PrunedModel:
    """The smaller model, and what was taken out of the original."""

    model: ModelTree
    slimmed: tuple[Slimmed, ...]

    @property
    def removed(self) -> int:
        """How many channels are gone."""
        return sum(group.size - len(group.kept) for group in self.slimmed)


def prune_filters(
    model: ModelTree, ratio: float, criterion: Criterion | Scores = "l2", samples: Floats | None = None
) -> PrunedModel:
    """Return the model without the least important `ratio` of every group's filters; `model` stays as it is.

    Args:
        ratio: in (0, 1). At least one filter of each group is kept.
        criterion: the name of one, or scores of the caller's.
        samples: real values [n, …] for input 0, which "reconstruction" needs.

    Raises:
        Rejected: when the ratio is out of range, or nothing can be pruned; the text says what stands in the way.
        Misuse: when "reconstruction" has no samples.
    """
    check_share(ratio)
    groups = prunable_groups(model)
    counts = [(group, min(group.size - 1, int(group.size * ratio))) for group in groups]
    chosen = [(group, count) for group, count in counts if count > 0]
    if not chosen:
        raise Rejected(f"nothing to prune at a share of {ratio}: {len(groups)} groups have too few filters")
    return without_channels(
        model, [(group, found.channels) for group, found in removals(model, chosen, criterion, samples)]
    )


def check_share(share: float) -> None:
    """Refuse a share that is not in (0, 1)."""
    if not 0 < share < 1:
        raise Rejected(f"cannot prune a share of {share}: give one above 0 and below 1")


def prunable_groups(model: ModelTree) -> list[Group]:
    """Return the groups that can lose channels.

    Raises:
        Rejected: when there is none; the text says what stands in the way.
    """
    groups = channel_groups(model)
    free = [group for group in groups if group.fixed is None and group.filters]
    if not free:
        raise Rejected(f"nothing to prune: {_obstacles(groups)}")
    return free


def removals(
    model: ModelTree, chosen: Sequence[tuple[Group, int]], criterion: Criterion | Scores, samples: Floats | None
) -> list[tuple[Group, Removal]]:
    """Return the channels of each group in the order in which they go, as many as are asked for."""
    activations: Activations | None = None
    if criterion == "reconstruction":
        if samples is None:
            raise Misuse("pruning by reconstruction needs samples")
        activations = record_inputs(model, [group for group, _ in chosen], samples)
    found = []
    for group, count in chosen:
        if activations is not None and group.consumers:
            removal = removal_order(model, group, count, activations)
        else:
            scores = _importance(model, group, criterion)
            order = np.argsort(scores, kind="stable")[:count]
            removal = Removal(order, scores[order] / max(float(scores.sum()), np.finfo(np.float64).tiny))
        found.append((group, removal))
    return found


def _importance(model: ModelTree, group: Group, criterion: Criterion | Scores) -> npt.NDArray[np.float64]:
    if callable(criterion):
        return criterion(group)
    return weight_importance(model, group, "l2" if criterion == "reconstruction" else criterion)


def without_channels(model: ModelTree, gone: Sequence[tuple[Group, Places]]) -> PrunedModel:
    """Return a copy of the model without the channels of each group."""
    pruned = copy.deepcopy(model)
    _cut(pruned, gone)
    slimmed = tuple(
        Slimmed(
            group.size,
            np.setdiff1d(np.arange(group.size), channels),
            tuple(group.consumers),
            tuple(span.tensor for span in group.filters),
            tuple(group.activations),
        )
        for group, channels in gone
    )
    return PrunedModel(pruned, slimmed)


def _cut(model: ModelTree, gone: Sequence[tuple[Group, Places]]) -> None:
    """Take the channels out of every tensor that holds them; all at once, for groups may lie in one tensor."""
    graph = model.subgraphs[0]
    places: dict[tuple[int, int], list[Places]] = {}
    for group, channels in gone:
        spans = [*group.filters, *group.followers, *group.activations]
        spans += [consumer.weights for consumer in group.consumers]
        for span in spans:
            places.setdefault((span.tensor, span.axis), []).append(span.places(group.size)[channels].reshape(-1))
    for (tensor, axis), lost in places.items():
        _cut_tensor(model, tensor, axis, np.unique(np.concatenate(lost)))
    for place in {place for group, _ in gone for place in group.reshapes}:
        operator = graph.operators[place]
        shape = [int(size) for size in graph.tensors[operator.outputs[0]].shape]
        if operator.builtinOptions is not None and getattr(operator.builtinOptions, "newShape", None) is not None:
            operator.builtinOptions.newShape = _retarget(operator.builtinOptions.newShape, shape[-1])
        if operator_name(model, operator) == "RESHAPE" and len(operator.inputs) > 1:
            target = graph.tensors[operator.inputs[1]]
            values = constant(model, target)
            if values is not None:
                set_constant(model, target, np.array(_retarget(values, shape[-1]), np.int32))


def _cut_tensor(model: ModelTree, index: int, axis: int, lost: Places) -> None:
    tensor = model.subgraphs[0].tensors[index]
    values = constant(model, tensor)
    if values is not None:
        set_constant(model, tensor, np.delete(values, lost, axis))
        return
    for name in ("shape", "shapeSignature"):
        sizes = getattr(tensor, name)
        if sizes is not None and len(sizes):
            changed = np.array(sizes, np.int32)
            changed[axis] -= len(lost)
            setattr(tensor, name, changed)


def _retarget(shape: Sequence[int] | npt.NDArray[np.int32], last: int) -> list[int]:
    """Return a RESHAPE's target with another last size; -1 stays, for it follows by itself."""
    sizes = [int(size) for size in shape]
    if sizes and sizes[-1] >= 0:
        sizes[-1] = last
    return sizes


def _obstacles(groups: Sequence[Group]) -> str:
    reasons = sorted({group.fixed for group in groups if group.fixed and group.filters})
    parts = [f"layers are held since {reason}" for reason in reasons]
    return "; ".join(parts) or "the model has no convolution or fully connected layer"
