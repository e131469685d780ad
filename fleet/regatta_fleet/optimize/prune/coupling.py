"""Which layers of a graph share their channels, so that a filter can be taken out everywhere at once.

A channel group is a set of channels that stand or fall together: the filters of the layers that produce them, whatever
carries them on channel by channel (depthwise convolution, pooling, activations, ADD with its other side), and the
layers that consume them. Flattening [1, h, w, c] into [1, h·w·c] keeps them: place i holds channel i mod c.

Pure analysis of the tree; nothing is changed. Whatever is not known here fixes the channels that it touches, with the
operator's name as the reason, so an unknown operator can make pruning smaller but never wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from regatta_fleet.optimize.model_file import Array, ModelTree, constant, operator_name

__all__ = ["Consumer", "Group", "Member", "channel_groups"]

_LAYERS = {"CONV_2D": 3, "FULLY_CONNECTED": 1}  # axis of the weights that input channels lie on; outputs are on 0
_CHANNELWISE = {
    "AVERAGE_POOL_2D", "MAX_POOL_2D", "RELU", "RELU6", "RELU_N1_TO_1", "LEAKY_RELU", "ELU", "HARD_SWISH",
    "LOGISTIC", "TANH", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR",
}  # fmt: skip
_PAIRWISE = {"ADD", "SUB", "MUL", "MAXIMUM", "MINIMUM"}
_NO_BIAS = -1


@dataclass(frozen=True)
class Member:
    """A constant that holds the group's channels along one axis."""

    tensor: int
    axis: int


@dataclass(frozen=True)
class Consumer:
    """A layer whose weights take the group's channels in: `block` of them in a row along `axis`."""

    operator: int
    weights: int
    axis: int
    block: int


@dataclass
class Group:
    """Channels that stand or fall together. `fixed` says why they cannot be pruned, or is None."""

    size: int
    filters: list[Member] = field(default_factory=list)  # weights [size, …] whose norms rank the channels
    followers: list[Member] = field(default_factory=list)  # biases, depthwise weights, constants added by channel
    consumers: list[Consumer] = field(default_factory=list)
    activations: dict[int, int] = field(default_factory=dict)  # tensor -> block: its last axis is block · size
    reshapes: list[int] = field(default_factory=list)  # operators whose target shape speaks of the channels
    fixed: str | None = None


def channel_groups(model: ModelTree) -> list[Group]:
    """Return the groups of the model's only subgraph, in the order of their first producers."""
    walk = _Walk(model)
    for place, operator in enumerate(walk.graph.operators):
        walk.visit(place, operator)
    for output in walk.graph.outputs:
        walk.fix(int(output), "it is an output of the model")
    walk.fix_shared_weights()
    return [group for group in walk.groups if group.size > 0]


class _Walk:
    """The groups found so far, and which tensor belongs to which."""

    def __init__(self, model: ModelTree) -> None:
        self.model = model
        self.graph: Any = model.subgraphs[0]
        self.groups: list[Group] = []
        self._group_of: dict[int, Group] = {}
        for index in self.graph.inputs:
            self._start(int(index)).fixed = "it is an input of the model"

    def visit(self, place: int, operator: Any) -> None:  # noqa: ANN401  # schema.OperatorT
        """Place the operator's outputs into groups."""
        kind = operator_name(self.model, operator)
        inputs = [int(index) for index in operator.inputs if index >= 0]
        output = int(operator.outputs[0]) if len(operator.outputs) == 1 else -1
        done = False
        if output >= 0:
            if kind in _LAYERS:
                done = self._layer(place, operator, output, _LAYERS[kind])
            elif kind == "DEPTHWISE_CONV_2D":
                done = self._depthwise(inputs, output)
            elif kind in _CHANNELWISE or (kind in ("PAD", "MEAN") and self._spatial_only(kind, inputs)):
                done = self._carry(inputs[0], output)
            elif kind in _PAIRWISE:
                done = self._pair(inputs, output)
            elif kind == "RESHAPE":
                done = self._reshape(place, inputs, output)
        if not done:
            for index in inputs:
                self.fix(index, f"{kind} follows")
            for index in operator.outputs:
                if int(index) >= 0:
                    self._start(int(index)).fixed = f"{kind} makes it"

    def fix(self, tensor: int, reason: str) -> None:
        """Forbid pruning of the channels of a tensor."""
        group = self._group_of.get(tensor)
        if group is not None and group.fixed is None:
            group.fixed = reason

    def fix_shared_weights(self) -> None:
        """Forbid pruning where two layers share weights: one slice cannot serve both."""
        uses: dict[int, int] = {}
        for operator in self.graph.operators:
            for index in operator.inputs:
                if int(index) >= 0:
                    uses[int(index)] = uses.get(int(index), 0) + 1
        for group in self.groups:
            tensors = [member.tensor for member in group.filters + group.followers]
            tensors += [consumer.weights for consumer in group.consumers]
            if group.fixed is None and any(uses.get(tensor, 0) > 1 for tensor in tensors):
                group.fixed = "its weights are shared by two layers"

    def _layer(self, place: int, operator: Any, output: int, axis: int) -> bool:  # noqa: ANN401  # schema.OperatorT
        source, weights = int(operator.inputs[0]), int(operator.inputs[1])
        values = self._constant(weights)
        if values is None:
            return False
        before = self._group_of.get(source)
        if before is not None:
            block = before.activations[source]
            if values.shape[axis] != block * before.size:  # a grouped convolution, or rows taken together
                return False
            before.consumers.append(Consumer(place, weights, axis, block))
        group = self._start(output)
        if group.size != len(values):
            group.fixed = "its shape is not its layer's"
        group.filters.append(Member(weights, 0))
        bias = int(operator.inputs[2]) if len(operator.inputs) > 2 else _NO_BIAS
        if bias >= 0:
            if self._constant(bias) is None:
                group.fixed = "its bias is computed"
            group.followers.append(Member(bias, 0))
        return True

    def _depthwise(self, inputs: list[int], output: int) -> bool:
        group = self._group_of.get(inputs[0])
        values = self._constant(inputs[1])
        if group is None or values is None or group.activations[inputs[0]] != 1 or values.shape[-1] != group.size:
            return False  # also a depth multiplier above 1
        group.followers.append(Member(inputs[1], 3))
        if len(inputs) > 2:
            group.followers.append(Member(inputs[2], 0))
        return self._carry(inputs[0], output)

    def _pair(self, inputs: list[int], output: int) -> bool:
        left, right = inputs
        if self._constant(left) is not None:
            left, right = right, left
        group, size = self._group_of.get(left), self._last(output)
        if group is None or self._last(left) != size:
            return False
        values = self._constant(right)
        if values is None:
            other = self._group_of.get(right)
            if other is None or other.activations[right] != group.activations[left] or self._last(right) != size:
                return False
            self._merge(group, other)
        elif values.size == size and values.shape[-1] == size and group.activations[left] == 1:
            group.followers.append(Member(right, values.ndim - 1))
        elif values.size != 1:
            return False
        return self._carry(left, output)

    def _reshape(self, place: int, inputs: list[int], output: int) -> bool:
        group = self._group_of.get(inputs[0])
        if group is None:
            return False
        if self._last(output) != self._last(inputs[0]):
            shape, flat = self._shape(inputs[0]), self._shape(output)
            if not (len(flat) == 2 and flat[0] == shape[0] and int(np.prod(shape[1:])) == flat[1]):
                return False
        if len(inputs) > 1 and self._constant(inputs[1]) is None:
            return False
        block = self._last(output) // group.size
        self._group_of[output] = group
        group.activations[output] = block
        group.reshapes.append(place)
        return True

    def _spatial_only(self, kind: str, inputs: list[int]) -> bool:
        values = self._constant(inputs[1]) if len(inputs) > 1 else None
        if values is None:
            return False
        rank = len(self._shape(inputs[0]))
        if kind == "PAD":
            return not values.reshape(-1, 2)[-1].any()
        return all(0 < int(axis) % rank < rank - 1 for axis in values.reshape(-1))

    def _carry(self, source: int, output: int) -> bool:
        group = self._group_of.get(source)
        if group is None or self._last(source) != self._last(output):
            return False
        self._group_of[output] = group
        group.activations[output] = group.activations[source]
        return True

    def _merge(self, group: Group, other: Group) -> None:
        if group is other:
            return
        group.filters += other.filters
        group.followers += other.followers
        group.consumers += other.consumers
        group.reshapes += other.reshapes
        group.activations |= other.activations
        group.fixed = group.fixed or other.fixed
        for tensor in other.activations:
            self._group_of[tensor] = group
        self.groups.remove(other)

    def _start(self, tensor: int) -> Group:
        group = Group(self._last(tensor), activations={tensor: 1})
        self.groups.append(group)
        self._group_of[tensor] = group
        return group

    def _shape(self, tensor: int) -> tuple[int, ...]:
        shape = self.graph.tensors[tensor].shape
        return () if shape is None else tuple(int(size) for size in shape)

    def _last(self, tensor: int) -> int:
        shape = self._shape(tensor)
        return shape[-1] if shape else 0

    def _constant(self, tensor: int) -> Array | None:
        return constant(self.model, self.graph.tensors[tensor])
