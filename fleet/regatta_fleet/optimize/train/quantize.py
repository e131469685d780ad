"""Quantization-aware training of a .tflite: it learns to answer as the float model did, rounded as the file will be.

The result is a float .tflite whose weights lie on the levels already; the quantizer of post-training quantization then
only writes them down (`optimize.quantize.engine`, by the same scheme, or by `recipes.rounded_int4_recipe`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from regatta_fleet.optimize.model_file import ModelTree
from regatta_fleet.optimize.samples import Samples
from regatta_fleet.optimize.train.bridge import Layer, load_network, with_weights
from regatta_fleet.optimize.train.fit import Progress
from regatta_fleet.optimize.train.imitation import Imitation
from regatta_fleet.optimize.train.options import FitOptions
from regatta_fleet.optimize.train.teaching import Blend, teach

__all__ = ["Precision", "QuantizationAware", "train_quantized", "training_options"]

Precision = Literal["int8", "int4-weights"]

_INT4_KINDS = {"CONV_2D", "FULLY_CONNECTED"}  # what ai-edge-quantizer 0.10 can give int4 weights


@dataclass(frozen=True)
class QuantizationAware:
    """The float model that was trained to be quantized, and the mean loss of each epoch."""

    model: ModelTree
    losses: tuple[float, ...]


def train_quantized(
    model: ModelTree,
    teacher: ModelTree,
    samples: Samples,
    precision: Precision,
    *,
    blend: Blend | None = None,
    options: FitOptions | None = None,
    seed: int = 0,
    progress: Progress = lambda message, share: None,
) -> QuantizationAware:
    """Return the model trained for a precision: "int8" in weights and activations, or "int4-weights" computed in float
    (depthwise layers in int8).

    Args:
        model: float; stays as it is.
        teacher: whose answers are to be kept: the model itself, or the original of a pruned one.
        blend: how the teacher counts beside the labels; by default alone, at T = 2.

    Raises:
        Rejected: when the model cannot be trained (see `teaching.teach`), naming operator and tensor.
    """
    network, guide = load_network(model), load_network(teacher)
    bits = {layer.weights: _bits(layer, precision) for layer in network.layers}
    imitation = Imitation(network, bits)
    inputs = torch.from_numpy(samples.x)

    def tell(message: str, share: float) -> None:
        if precision == "int8":
            imitation.observe(inputs)
        progress(message, share)

    if precision == "int8":
        imitation.observe(inputs)
    losses = teach(
        network.logits,
        list(network.parameters()),
        guide.logits,
        samples.x,
        samples.y,
        blend=(blend or Blend(1.0, 2.0)) if guide.ends_in_softmax else None,
        options=options or training_options(precision),
        seed=seed,
        progress=tell,
    )
    imitation.settle()
    return QuantizationAware(with_weights(model, network), losses)


def training_options(precision: Precision) -> FitOptions:
    """Return how long and how fast to train: int8 begins near its goal, and a higher rate leads away from it."""
    return FitOptions(epochs=40, learning_rate=1e-3 if precision == "int4-weights" else 3e-4, mixed=False)


def _bits(layer: Layer, precision: Precision) -> int:
    return 4 if precision == "int4-weights" and layer.kind in _INT4_KINDS else 8
