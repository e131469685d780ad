"""Folds the stride of a convolution over one or two channels into channels, which changes no answer.

XNNPACK's int8 kernels take four input channels or more at a time, for each tap of a kernel anew: over one channel,
three quarters of their work is on nothing (KWS: 10 × 4 taps, slower in int8 than in float). A convolution with a stride
of 2 over [h, w, c] is also one with stride 1 over the [h/2, w/2, 4c] that SPACE_TO_DEPTH makes, with its weights
arranged anew (Ying et al. 2018, "Image Classification at Supercomputer Scale", section 3.5): 5 × 3 taps of four
channels. Where only the width is folded, a RESHAPE does, which costs nothing. Float kernels waste no channels, and gain
nothing.

Folded is what an estimate of the work says gains by it (`_Way.cost`), in the way in which it gains most. That comes to
strides above 1, one or two channels and widths of whole blocks: over three channels the padded work grows. Behind a PAD
(as PyTorch's convolutions are) nothing is folded: XNNPACK makes one operator of the two, which would fall apart. Pure
over the tree.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from regatta_fleet.optimize.model_builder import ModelBuilder
from regatta_fleet.optimize.model_file import (
    Array,
    ModelTree,
    constant,
    operator_name,
    schema,
    set_constant,
    tensor_name,
)

__all__ = ["Folded", "fold"]

# The cost of an output pixel, in passes over four input channels and 16 filters, as XNNPACK's int8 kernels make them
# ("16c4"; some have c8). Fitted to LiteRT on x86 with AVX512-VNNI (./run bench optimize folding): going on to another
# tap costs half a pass, SPACE_TO_DEPTH four, PAD of rows eight on small pictures. PAD of columns takes KWS 5 µs, the
# whole convolution 3; SPACE_TO_DEPTH of anything but 1, 2 or 4 bytes at a time is ten times as slow.
_CHANNELS, _FILTERS = 4, 16
_NEXT_TAP = 0.5
_FRONT = {"PAD": 8.0, "SPACE_TO_DEPTH": 4.0, "RESHAPE": 0.0}
_MOVED = (1, 2, 4)
_WORTH = 0.8  # of the cost there was: less is not worth another operator


@dataclass(frozen=True)
class Folded:
    """A convolution that was folded, and its kernel before and after, [h, w, c]."""

    kernel: tuple[int, ...]
    becomes: tuple[int, ...]
    way: str  # the operators in front of it
    source: str  # the tensor that it took in
    added: tuple[str, ...]  # the tensors in front of it, which hold values of `source` and 0

    @property
    def words(self) -> str:
        """Return what was done, for the report."""
        before, after = (" × ".join(map(str, sizes)) for sizes in (self.kernel, self.becomes))
        return f"stride of a convolution folded into channels by {self.way}: its kernel of {before} becomes {after}"


@dataclass(frozen=True)
class _Axis:
    """One way to fold an axis: PAD by `before` and `after`, and the kernel with `front` zeros put before it.

    `taps` and `stride` count in blocks. `padding` is what the convolution then does by itself.
    """

    block: int
    before: int
    after: int
    front: int
    taps: int
    stride: int
    padding: int  # schema.Padding


@dataclass(frozen=True)
class _Way:
    """One way to fold a convolution over `channels`."""

    rows: _Axis
    columns: _Axis
    channels: int
    filters: int

    @property
    def depth(self) -> int:
        """How many channels the input has afterwards."""
        return self.rows.block * self.columns.block * self.channels

    @property
    def cost(self) -> float:
        """Return the estimated cost of an output pixel, with that of what stands in front of the convolution."""
        taps = self.rows.taps * self.columns.taps
        return _cost(taps, self.depth, self.filters) + sum(_FRONT[kind] for kind in self.operators)

    @property
    def pads(self) -> tuple[int, int]:
        """Rows of PAD at the top and the bottom."""
        return self.rows.before, self.rows.after

    @property
    def operators(self) -> tuple[str, ...]:
        """What stands in front of the convolution."""
        return ("PAD",) * any(self.pads) + ("RESHAPE" if self.rows.block == 1 else "SPACE_TO_DEPTH",)


def fold(model: ModelTree, *, worth: float = _WORTH) -> tuple[ModelTree, tuple[Folded, ...]]:
    """Return the model with every convolution folded where that pays, and which were; itself where none was.

    The answers are the same to the rounding of float32 sums; `model` stays as it is.

    Args:
        worth: fold where at most this share of the cost is left.
    """
    places = range(len(model.subgraphs[0].operators))
    ways = [(place, way) for place in places if (way := _best(model, place, worth)) is not None]
    if not ways:
        return model, ()
    folded = copy.deepcopy(model)
    done = tuple(_apply(folded, place, way) for place, way in reversed(ways))  # from behind: places before stay
    return folded, done[::-1]


def _best(model: ModelTree, place: int, worth: float) -> _Way | None:
    """Return how to fold the operator, or None where it is no convolution that gains by it."""
    graph = model.subgraphs[0]
    operator = graph.operators[place]
    if operator_name(model, operator) != "CONV_2D":
        return None
    options, weights = operator.builtinOptions, constant(model, graph.tensors[operator.inputs[1]])
    if options is None or weights is None or weights.dtype != np.float32:
        return None
    size, out = (graph.tensors[index].shape for index in (operator.inputs[0], operator.outputs[0]))
    behind = {operator_name(model, other) for other in graph.operators if operator.inputs[0] in other.outputs}
    shared = sum(operator.inputs[1] in other.inputs for other in graph.operators) > 1
    dilated = options.dilationHFactor != 1 or options.dilationWFactor != 1
    if shared or dilated or behind & {"PAD", "PADV2"} or weights.shape[3] != size[3]:
        return None
    before = _cost(math.prod(weights.shape[1:3]), weights.shape[3], len(weights))
    best = min(_ways(size[1:3], out[1:3], weights.shape, options), key=lambda way: way.cost, default=None)
    return best if best is not None and best.cost <= worth * before else None


def _ways(
    size: Sequence[int], out: Sequence[int], weights: Sequence[int], options: Any  # noqa: ANN401  # schema.Conv2DOptionsT
) -> Iterator[_Way]:  # fmt: skip
    """Yield the ways to fold a convolution with weights [out, h, w, c], without PAD of columns."""
    same = options.padding == schema.Padding.SAME
    strides = int(options.strideH), int(options.strideW)
    for block in _blocks(*strides, weights[3]):
        rows, columns = (
            _axis_ways(int(size[axis]), int(out[axis]), weights[1 + axis], strides[axis], block[axis], same, axis == 0)
            for axis in (0, 1)
        )
        for down, right in itertools.product(rows, columns):
            if down.padding == right.padding:
                yield _Way(down, right, weights[3], weights[0])


def _blocks(down: int, right: int, channels: int) -> Iterator[tuple[int, int]]:
    """Yield the blocks of rows and columns that can be folded: squares by SPACE_TO_DEPTH, parts of a row by RESHAPE."""
    for block in range(2, right + 1):
        if right % block == 0:
            yield 1, block
        if right % block == down % block == 0 and block * channels in _MOVED:
            yield block, block


def _axis_ways(size: int, out: int, kernel: int, stride: int, block: int, same: bool, may_pad: bool) -> Iterator[_Axis]:
    """Yield the ways to fold an axis of `size` into blocks, that give the `out` values there were."""
    reach, by = (out - 1) * stride + kernel, stride // block
    lead = max(reach - size, 0) // 2 if same else 0
    after, front = -size % block, -lead % block
    taps, blocks = -(-(front + kernel) // block), -(-size // block)
    around = max((out - 1) * by + taps - blocks, 0)
    if (may_pad or after == 0) and -(-blocks // by) == out and around // 2 * block == lead + front:
        yield _Axis(block, 0, after, front, taps, by, schema.Padding.SAME)
    taps, blocks = -(-kernel // block), -(-max(reach, size + lead) // block)
    after = blocks * block - size - lead
    if (may_pad or lead == after == 0) and (blocks - taps) // by + 1 == out:
        yield _Axis(block, lead, after, 0, taps, by, schema.Padding.VALID)


def _cost(taps: int, channels: int, filters: int) -> float:
    return taps * (_NEXT_TAP + -(-channels // _CHANNELS)) * -(-filters // _FILTERS)


def _apply(model: ModelTree, place: int, way: _Way) -> Folded:
    """Fold the convolution at `place`, and put what folds its input in front of it."""
    graph = model.subgraphs[0]
    operator = graph.operators[place]
    weights = graph.tensors[operator.inputs[1]]
    values = constant(model, weights)
    assert values is not None  # _best saw to it
    set_constant(model, weights, _arranged(values, way))
    options = operator.builtinOptions
    options.strideH, options.strideW, options.padding = way.rows.stride, way.columns.stride, way.rows.padding
    name, source = tensor_name(graph.tensors[operator.outputs[0]]), int(operator.inputs[0])
    before = _front(model, source, way, name)
    operator.inputs = [int(before[-1].outputs[0]), *operator.inputs[1:]]
    graph.operators[place:place] = before
    return Folded(
        kernel=values.shape[1:],
        becomes=(way.rows.taps, way.columns.taps, way.depth),
        way=" and ".join(way.operators),
        source=tensor_name(graph.tensors[source]),
        added=tuple(tensor_name(graph.tensors[added.outputs[0]]) for added in before),
    )


def _arranged(weights: Array, way: _Way) -> npt.NDArray[np.float32]:
    """Return weights [out, kh, kw, c] as [out, rows, columns, depth], with zeros where blocks reach over the kernel."""
    around = [(0, 0)]
    for axis, size in ((way.rows, weights.shape[1]), (way.columns, weights.shape[2])):
        around.append((axis.front, axis.taps * axis.block - axis.front - size))
    filled = np.pad(weights, [*around, (0, 0)])
    split = filled.reshape(
        len(weights), way.rows.taps, way.rows.block, way.columns.taps, way.columns.block, way.channels
    )
    # SPACE_TO_DEPTH puts row of the block, column of the block and channel, in this order, on the last axis.
    arranged: npt.NDArray[np.float32] = split.transpose(0, 1, 3, 2, 4, 5).reshape(
        len(weights), way.rows.taps, way.columns.taps, way.depth
    )
    return arranged


def _front(model: ModelTree, source: int, way: _Way, name: str) -> list[Any]:
    """Return the operators that fold the input, in their order, with their tensors added."""
    operators: list[Any] = model.subgraphs[0].operators
    count, builder = len(operators), ModelBuilder.of(model)
    batch, height, width, channels = (int(size) for size in model.subgraphs[0].tensors[source].shape)
    if any(way.pads):
        height += sum(way.pads)
        pads = builder.constant(f"{name}/pads", np.array([[0, 0], way.pads, [0, 0], [0, 0]], np.int32))
        shape = (batch, height, width, channels)
        source = builder.operator("PAD", [source, pads], f"{name}/padded", shape, schema.PadOptionsT())
    shape = (batch, height // way.rows.block, width // way.columns.block, way.depth)
    inputs = [source]
    if way.rows.block == 1:
        options = schema.ReshapeOptionsT()
        options.newShape = [-1, *shape[1:]]  # whatever batch a runtime gives the input
        inputs.append(builder.constant(f"{name}/shape", np.array(options.newShape, np.int32)))
        builder.operator("RESHAPE", inputs, f"{name}/folded", shape, options)
    else:
        options = schema.SpaceToDepthOptionsT()
        options.blockSize = way.rows.block
        builder.operator("SPACE_TO_DEPTH", inputs, f"{name}/folded", shape, options)
    added = operators[count:]
    del operators[count:]
    return added
