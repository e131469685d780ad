"""Writes an architecture's layers as a .tflite: trained, or with seeded weights to be timed. Needs no framework.

Weights come in TFLite's layouts with batch normalization folded in: convolutions [out, k, k, in], depthwise [1, k, k,
c], dense [out, in]; biases [out].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from regatta_fleet.optimize.model_builder import Activation, ModelBuilder
from regatta_fleet.optimize.model_file import ModelTree
from regatta_fleet.optimize.nas.layers import Layer, Shape

__all__ = ["Weights", "network_model", "probe_model"]

Floats = npt.NDArray[np.float32]
Weights = Mapping[int, tuple[Floats, Floats]]  # by the layer's place


def network_model(layers: Sequence[Layer], weights: Weights) -> ModelTree:
    """Return the model: input float32 [1, h, w, c], output the probabilities [1, classes]."""
    builder = ModelBuilder("found by Regatta's architecture search")
    before = layers[0].before
    places = [builder.input("x", (1, *before))]
    for at, layer in enumerate(layers):
        places.append(_add(builder, at, layer, places, weights))
    classes = layers[-1].after[2]
    return builder.finish([builder.softmax("probabilities", places[-1], (1, classes))])


def probe_model(layer: Layer | None, before: Shape, seed: int = 0) -> ModelTree:
    """Return a model that does one layer, or none: what stands around the layer is the same for all of one `before`.

    Its input is [1, 1, 1, 1] for every probe, so that many of them can be variants of one bundle: a constant of the
    shape that the layer takes is added to it.
    """
    builder = ModelBuilder("a probe of one layer")
    random = np.random.RandomState(seed)
    constant = builder.constant("constant", random.standard_normal((1, *before)).astype(np.float32))
    place = builder.add("given", constant, builder.input("x", (1, 1, 1, 1)), (1, *before))
    if layer is None:
        return builder.finish([place])
    alone = replace(layer, skip=-1) if layer.kind == "add" else layer
    return builder.finish([_add(builder, 0, alone, [place], {0: _seeded(layer, random)})])


def _add(builder: ModelBuilder, at: int, layer: Layer, places: Sequence[int], weights: Weights) -> int:
    """Add the layer; `places` are the tensors of the input and of every layer before it."""
    name, source, shape = f"{layer.kind}{at}", places[-1], (1, *layer.after)
    if layer.kind == "add":
        assert layer.skip is not None
        return builder.add(name, source, places[layer.skip + 1], shape)
    if layer.kind == "average":
        return builder.pool(name, source, shape, size=layer.before[:2], kind="AVERAGE")
    kernel, bias = weights[at]
    activation: Activation = "RELU" if layer.relu else "NONE"
    if layer.kind == "dense":
        flat = builder.reshape(f"flat{at}", source, (1, layer.before[2]))
        return builder.dense(name, flat, kernel, bias, (1, layer.after[2]))
    if layer.kind == "depthwise":
        return builder.depthwise(name, source, kernel, bias, shape, stride=layer.stride, activation=activation)
    return builder.conv(name, source, kernel, bias, shape, stride=layer.stride, activation=activation)


def _seeded(layer: Layer, random: np.random.RandomState) -> tuple[Floats, Floats]:
    k, channels, out = layer.kernel, layer.before[2], layer.after[2]
    shape = {"conv": (out, k, k, channels), "depthwise": (1, k, k, channels), "dense": (out, channels)}
    drawn = random.standard_normal(shape.get(layer.kind, (1,))) * 0.1
    return drawn.astype(np.float32), np.zeros(out, np.float32)
