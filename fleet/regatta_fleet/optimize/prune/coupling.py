"""Which layers of a graph share their channels, so that a filter can be taken out everywhere at once.

A channel group is a set of channels that stand or fall together: the filters of the layers that produce them, whatever
carries them on channel by channel (depthwise convolution, pooling, activations, ADD with its other side), and the
layers that consume them. CONCATENATION puts groups side by side, and flattening [1, h, w, c] into [1, h·w·c] repeats
them: where a group lies along an axis is told by a `Span`.

Pure analysis of the tree; nothing is changed. Whatever is not known here fixes the channels that it touches, with the
operator's name as the reason, so an unknown operator can make pruning smaller but never wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from regatta_fleet.optimize.model_file import Array, ModelTree, constant, operator_name

__all__ = ["Consumer", "Group", "Span", "channel_groups"]

_LAYERS = {"CONV_2D": 3, "FULLY_CONNECTED": 1}  # axis of the weights that input channels lie on; outputs are on 0
_CHANNELWISE = {
    "AVERAGE_POOL_2D", "MAX_POOL_2D", "RELU", "RELU6", "RELU_N1_TO_1", "LEAKY_RELU", "ELU", "HARD_SWISH",
    "LOGISTIC", "TANH", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR",
}  # fmt: skip
_SPATIAL = {"PAD", "PADV2", "MIRROR_PAD", "MEAN", "SUM", "REDUCE_MAX"}  # channelwise where they leave the last axis
_PAIRWISE = {"ADD", "SUB", "MUL", "DIV", "MAXIMUM", "MINIMUM", "SQUARED_DIFFERENCE", "PRELU"}
_RESHAPES = {"RESHAPE", "SQUEEZE", "EXPAND_DIMS"}
_NO_BIAS = -1


@dataclass(frozen=True)
class Span:
    """Where a group lies along an axis of a tensor: channel c at start + c, and again `block` times, `stride` apart."""

    tensor: int
    axis: int
    start: int = 0
    block: int = 1
    stride: int = 0

    def places(self, size: int) -> npt.NDArray[np.int64]:
        """Return the places of each of the group's `size` channels, int64 [size, block]."""
        return self.start + np.arange(size)[:, None] + self.stride * np.arange(self.block)[None, :]


@dataclass(frozen=True)
class Consumer:
    """A layer whose weights take the group's channels in."""

    operator: int
    weights: Span


@dataclass(eq=False)
class Group:
    """Channels that stand or fall together. `fixed` says why they cannot be pruned, or is None."""

    size: int
    filters: list[Span] = field(default_factory=list)  # weights [size, …] whose norms rank the channels
    followers: list[Span] = field(default_factory=list)  # biases, depthwise weights, constants added by channel
    consumers: list[Consumer] = field(default_factory=list)
    activations: list[Span] = field(default_factory=list)  # along the last axis of what is computed
    reshapes: list[int] = field(default_factory=list)  # operators whose target shape speaks of the channels
    fixed: str | None = None


@dataclass
class _Run:
    """A group's channels in a tensor, from `start` on, in each of the tensor's repeats."""

    group: Group
    start: int


@dataclass(frozen=True)
class _Layout:
    """The last axis of a tensor: the same runs of groups, `block` times, each `width` long."""

    runs: tuple[_Run, ...]
    width: int
    block: int = 1


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
    """The groups found so far, and how they lie in each tensor."""

    def __init__(self, model: ModelTree) -> None:
        self.model = model
        self.graph: Any = model.subgraphs[0]
        self.groups: list[Group] = []
        self._layouts: dict[int, _Layout] = {}
        for index in self.graph.inputs:
            self._start(int(index)).fixed = "it is an input of the model"

    def visit(self, place: int, operator: Any) -> None:  # noqa: ANN401  # schema.OperatorT
        """Place the operator's outputs into groups."""
        kind = operator_name(self.model, operator)
        inputs = [int(index) for index in operator.inputs if index >= 0]
        output = int(operator.outputs[0]) if len(operator.outputs) == 1 else -1
        if output < 0 or not self._place(place, operator, kind, inputs, output):
            for index in inputs:
                self.fix(index, f"{kind} follows")
            for index in operator.outputs:
                if int(index) >= 0:
                    self._start(int(index)).fixed = f"{kind} makes it"

    def fix(self, tensor: int, reason: str) -> None:
        """Forbid pruning of the channels of a tensor."""
        layout = self._layouts.get(tensor)
        for run in () if layout is None else layout.runs:
            run.group.fixed = run.group.fixed or reason

    def fix_shared_weights(self) -> None:
        """Forbid pruning where two layers share weights: one slice cannot serve both."""
        uses: dict[int, int] = {}
        for operator in self.graph.operators:
            for index in operator.inputs:
                if int(index) >= 0:
                    uses[int(index)] = uses.get(int(index), 0) + 1
        for group in self.groups:
            tensors = [span.tensor for span in group.filters + group.followers]
            tensors += [consumer.weights.tensor for consumer in group.consumers]
            if group.fixed is None and any(uses.get(tensor, 0) > 1 for tensor in tensors):
                group.fixed = "its weights are shared by two layers"

    def _place(self, place: int, operator: Any, kind: str, inputs: list[int], output: int) -> bool:  # noqa: ANN401
        if kind in _LAYERS:
            return self._layer(place, operator, output, _LAYERS[kind])
        if kind == "DEPTHWISE_CONV_2D":
            return self._depthwise(inputs, output)
        if kind in _CHANNELWISE or (kind in _SPATIAL and self._spatial_only(kind, inputs)):
            return self._carry(inputs[0], output)
        if kind in _PAIRWISE and len(inputs) == 2:
            return self._pair(inputs, output)
        if kind in _RESHAPES:
            return self._reshape(place, inputs, output)
        return kind == "CONCATENATION" and self._join(operator, inputs, output)

    def _layer(self, place: int, operator: Any, output: int, axis: int) -> bool:  # noqa: ANN401  # schema.OperatorT
        source, weights = int(operator.inputs[0]), int(operator.inputs[1])
        values = self._constant(weights)
        if values is None:
            return False
        before = self._layouts.get(source)
        if before is not None:
            if values.shape[axis] != before.block * before.width:  # a grouped convolution, or rows taken together
                return False
            for run in before.runs:
                span = Span(weights, axis, run.start, before.block, before.width)
                run.group.consumers.append(Consumer(place, span))
        group = self._start(output)
        if group.size != len(values):
            group.fixed = "its shape is not its layer's"
        group.filters.append(Span(weights, 0))
        bias = int(operator.inputs[2]) if len(operator.inputs) > 2 else _NO_BIAS
        if bias >= 0:
            if self._constant(bias) is None:
                group.fixed = "its bias is computed"
            group.followers.append(Span(bias, 0))
        return True

    def _depthwise(self, inputs: list[int], output: int) -> bool:
        layout = self._layouts.get(inputs[0])
        values = self._constant(inputs[1])
        if layout is None or values is None or layout.block != 1 or values.shape[-1] != layout.width:
            return False  # also a depth multiplier above 1
        for run in layout.runs:
            run.group.followers.append(Span(inputs[1], 3, run.start))
            if len(inputs) > 2:
                run.group.followers.append(Span(inputs[2], 0, run.start))
        return self._carry(inputs[0], output)

    def _pair(self, inputs: list[int], output: int) -> bool:
        left, right = inputs
        if self._constant(left) is not None:
            left, right = right, left
        layout, size = self._layouts.get(left), self._last(output)
        if layout is None or self._last(left) != size:
            return False
        values = self._constant(right)
        if values is None:
            if not self._merge_layouts(layout, self._layouts.get(right)):
                return False
        elif values.size != 1:
            if values.shape[-1] != size or layout.block != 1:
                return False
            for run in layout.runs:
                run.group.followers.append(Span(right, values.ndim - 1, run.start))
        return self._carry(left, output)

    def _reshape(self, place: int, inputs: list[int], output: int) -> bool:
        layout = self._layouts.get(inputs[0])
        if layout is None or layout.width == 0:
            return False
        if self._last(output) != self._last(inputs[0]):
            shape, flat = self._shape(inputs[0]), self._shape(output)
            if not (len(flat) == 2 and flat[0] == shape[0] and int(np.prod(shape[1:])) == flat[1]):
                return False
        if len(inputs) > 1 and self._constant(inputs[1]) is None:
            return False
        self._lay(output, _Layout(layout.runs, layout.width, self._last(output) // layout.width))
        for run in layout.runs:
            run.group.reshapes.append(place)
        return True

    def _join(self, operator: Any, inputs: list[int], output: int) -> bool:  # noqa: ANN401  # schema.OperatorT
        rank = len(self._shape(output))
        axis = 0 if operator.builtinOptions is None else int(operator.builtinOptions.axis)
        layouts = [self._layouts.get(index) for index in inputs]
        if axis % rank != rank - 1:  # joined in space: the same channels come from all sides
            first = layouts[0]
            return (
                first is not None
                and all(self._merge_layouts(first, other) for other in layouts[1:])
                and (self._carry(inputs[0], output))
            )
        runs: list[_Run] = []
        width = 0
        for layout in layouts:
            if layout is None or layout.block != 1:
                return False
            runs += [_Run(run.group, width + run.start) for run in layout.runs]
            width += layout.width
        self._lay(output, _Layout(tuple(runs), width))
        return True

    def _spatial_only(self, kind: str, inputs: list[int]) -> bool:
        values = self._constant(inputs[1]) if len(inputs) > 1 else None
        if values is None:
            return False
        rank = len(self._shape(inputs[0]))
        if "PAD" in kind:
            return not values.reshape(-1, 2)[-1].any()
        return all(0 < int(axis) % rank < rank - 1 for axis in values.reshape(-1))

    def _carry(self, source: int, output: int) -> bool:
        layout = self._layouts.get(source)
        if layout is None or self._last(source) != self._last(output):
            return False
        self._lay(output, layout)
        return True

    def _merge_layouts(self, layout: _Layout, other: _Layout | None) -> bool:
        """Make the channels of two tensors the same, place by place; False when their groups do not lie alike."""
        if other is None or (layout.width, layout.block) != (other.width, other.block):
            return False
        if [(run.start, run.group.size) for run in layout.runs] != [(run.start, run.group.size) for run in other.runs]:
            return False
        for here, there in zip(layout.runs, other.runs, strict=True):
            self._merge(here.group, there.group)
        return True

    def _merge(self, group: Group, other: Group) -> None:
        if group is other:
            return
        group.filters += other.filters
        group.followers += other.followers
        group.consumers += other.consumers
        group.reshapes += other.reshapes
        group.activations += other.activations
        group.fixed = group.fixed or other.fixed
        for layout in self._layouts.values():
            for run in layout.runs:
                if run.group is other:
                    run.group = group
        self.groups.remove(other)

    def _start(self, tensor: int) -> Group:
        group = Group(self._last(tensor))
        self.groups.append(group)
        self._lay(tensor, _Layout((_Run(group, 0),), group.size))
        return group

    def _lay(self, tensor: int, layout: _Layout) -> None:
        self._layouts[tensor] = layout
        axis = len(self._shape(tensor)) - 1
        for run in layout.runs:
            run.group.activations.append(Span(tensor, axis, run.start, layout.block, layout.width))

    def _shape(self, tensor: int) -> tuple[int, ...]:
        shape = self.graph.tensors[tensor].shape
        return () if shape is None else tuple(int(size) for size in shape)

    def _last(self, tensor: int) -> int:
        shape = self._shape(tensor)
        return shape[-1] if shape else 0

    def _constant(self, tensor: int) -> Array | None:
        return constant(self.model, self.graph.tensors[tensor])
