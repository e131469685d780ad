"""An architecture's layers as a PyTorch module, and its weights as TFLite wants them. Only in the search's child.

Each convolution is followed by batch normalization, folded into it on the way out. Padding is TFLite's SAME, whose odd
row goes to the end, so that the written model computes the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from regatta_fleet.optimize.nas.layers import Layer
from regatta_fleet.optimize.nas.tflite import Weights

__all__ = ["Network", "folded_weights", "pad_same"]


class Network(nn.Module):  # type: ignore[misc]  # torch is not typed here
    """The layers; input float32 [n, c, h, w], output logits [n, classes]."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.parts = nn.ModuleDict({str(at): _part(layer) for at, layer in enumerate(layers) if _has_weights(layer)})

    def forward(self, x: Tensor) -> Tensor:
        places = [x]
        for at, layer in enumerate(self.layers):
            places.append(self._step(at, layer, places))
        return places[-1]

    def _step(self, at: int, layer: Layer, places: Sequence[Tensor]) -> Tensor:
        x = places[-1]
        if layer.kind == "add":
            assert layer.skip is not None
            return x + places[layer.skip + 1]
        if layer.kind == "average":
            return x.mean((2, 3), keepdim=True)
        if layer.kind == "dense":
            return self.parts[str(at)](x.flatten(1))
        x = self.parts[str(at)](pad_same(x, layer.kernel, layer.stride))
        return functional.relu(x) if layer.relu else x


def pad_same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Return [n, c, h, w] padded as TFLite's SAME pads it."""
    sides = []
    for size in (x.shape[3], x.shape[2]):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        sides += [total // 2, total - total // 2]
    return functional.pad(x, sides) if any(sides) else x


def folded_weights(network: Network) -> Weights:
    """Return weights and biases by the layer's place, in TFLite's layouts, with batch normalization folded in."""
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # type: ignore[type-arg]  # float32
    with torch.no_grad():
        for at, layer in enumerate(network.layers):
            if not _has_weights(layer):
                continue
            part = network.parts[str(at)]
            if layer.kind == "dense":
                found[at] = (part.weight.numpy().copy(), part.bias.numpy().copy())
                continue
            conv, norm = part[0], part[1]
            factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            weights = conv.weight * factor.reshape(-1, 1, 1, 1)
            order = (1, 2, 3, 0) if layer.kind == "depthwise" else (0, 2, 3, 1)
            found[at] = (
                np.ascontiguousarray(weights.permute(order).numpy()),
                (norm.bias - norm.running_mean * factor).numpy().copy(),
            )
    return found


def _has_weights(layer: Layer) -> bool:
    return layer.kind in ("conv", "depthwise", "dense")


def _part(layer: Layer) -> nn.Module:
    channels, out = layer.before[2], layer.after[2]
    if layer.kind == "dense":
        return nn.Linear(channels, out)
    groups = channels if layer.kind == "depthwise" else 1
    conv = nn.Conv2d(channels, out, layer.kernel, layer.stride, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out))
