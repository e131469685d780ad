"""An architecture as the layers that it is made of: what is built, trained, counted and timed. Pure.

Shapes are [h, w, c]; padding is SAME as in TFLite, so a stride of 2 halves a size, rounded up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from regatta_fleet.optimize.nas.space import BlockChoice, Genes, SearchSpace

__all__ = ["Layer", "Shape", "build_layers", "count", "every_layer", "operator_layers"]

Shape = tuple[int, int, int]
Kind = Literal["conv", "depthwise", "add", "average", "dense"]


@dataclass(frozen=True)
class Layer:
    """One layer. `skip` is the layer whose output an `add` adds to the one before it; -1 is the input."""

    kind: Kind
    kernel: int
    stride: int
    before: Shape
    after: Shape
    relu: bool = False
    skip: int | None = None

    @property
    def key(self) -> str:
        """Names what it costs: equal for layers of equal work."""
        sizes = "x".join(map(str, self.before))
        relu = "r" if self.relu else ""
        return f"{self.kind}{self.kernel}s{self.stride}{relu}-{sizes}-{self.after[2]}"

    @property
    def macs(self) -> int:
        outputs = math.prod(self.after)
        if self.kind == "conv":
            return outputs * self.kernel * self.kernel * self.before[2]
        if self.kind == "depthwise":
            return outputs * self.kernel * self.kernel
        return outputs * self.before[2] if self.kind == "dense" else 0

    @property
    def weights(self) -> int:
        if self.kind == "conv":
            return self.after[2] * (self.kernel * self.kernel * self.before[2] + 1)
        if self.kind == "depthwise":
            return self.after[2] * (self.kernel * self.kernel + 1)
        return self.after[2] * (self.before[2] + 1) if self.kind == "dense" else 0


def build_layers(space: SearchSpace, genes: Genes, shape: Shape, classes: int) -> tuple[Layer, ...]:
    """Return the layers of an architecture, for inputs of `shape` and so many classes."""
    layers: list[Layer] = []
    for choice in space.choices(genes):
        for at in range(choice.depth):
            layers += operator_layers(choice, shape, choice.stride if at == 0 else 1, len(layers))
            shape = layers[-1].after
    pooled = (1, 1, shape[2])
    layers.append(Layer("average", shape[0], 1, shape, pooled))
    layers.append(Layer("dense", 1, 1, pooled, (1, 1, classes)))
    return tuple(layers)


def operator_layers(choice: BlockChoice, shape: Shape, stride: int, begin: int) -> list[Layer]:
    """Return the layers of one operator; `begin` is how many layers there are before it."""
    if choice.op == "conv":
        return [_conv(shape, choice.kernel, stride, choice.width)]
    if choice.op == "separable":
        deep = _depthwise(shape, choice.kernel, stride)
        return [deep, _conv(deep.after, 1, 1, choice.width)]
    wide = _conv(shape, 1, 1, shape[2] * choice.expansion)
    deep = _depthwise(wide.after, choice.kernel, stride)
    narrow = _conv(deep.after, 1, 1, choice.width, relu=False)
    if narrow.after != shape:
        return [wide, deep, narrow]
    return [wide, deep, narrow, Layer("add", 1, 1, shape, shape, skip=begin - 1)]


def count(layers: Iterable[Layer]) -> tuple[int, int]:
    """Return multiply-accumulates and weights."""
    found = tuple(layers)
    return sum(layer.macs for layer in found), sum(layer.weights for layer in found)


def every_layer(space: SearchSpace, shape: Shape, classes: int) -> dict[str, Layer]:
    """Return each layer that any architecture of the space has, once, by its key."""
    found: dict[str, Layer] = {}
    before = {shape}
    for block in space.blocks:
        after: set[Shape] = set()
        single = SearchSpace(space=1, blocks=(block,))
        for choice in single.each_choice():
            for given in before:
                now = given
                for at in range(choice.depth):
                    for layer in operator_layers(choice, now, choice.stride if at == 0 else 1, 0):
                        found[layer.key] = layer
                        now = layer.after
                after.add(now)
        before = after
    for given in before:
        pooled = (1, 1, given[2])
        for layer in (Layer("average", given[0], 1, given, pooled), Layer("dense", 1, 1, pooled, (1, 1, classes))):
            found[layer.key] = layer
    return dict(sorted(found.items()))


def _conv(shape: Shape, kernel: int, stride: int, width: int, *, relu: bool = True) -> Layer:
    return Layer("conv", kernel, stride, shape, _strided(shape, stride, width), relu)


def _depthwise(shape: Shape, kernel: int, stride: int) -> Layer:
    return Layer("depthwise", kernel, stride, shape, _strided(shape, stride, shape[2]), relu=True)


def _strided(shape: Shape, stride: int, width: int) -> Shape:
    return -(-shape[0] // stride), -(-shape[1] // stride), width
