"""Imitates a quantized model while training (Jacob et al. 2018, section 3): values are rounded to the levels that the
file will have, and gradients pass the rounding as if it were not there (straight-through, Bengio et al. 2013).

Weights: symmetric, a scale for each filter. At 8 bits the greatest weight takes the last level. At 4 bits a scale that
clips the greatest weights has less error: the clip is chosen by least squared error out of a few shares of the greatest
weight, and as the greatest always saturates, a quantizer that goes by the greatest weight finds the very same scale in
the rounded weights. Activations: 8 bits, one asymmetric range a tensor that holds 0, from the minimum to the maximum
over all samples, as the quantizer will take it. (The moving average over batches of Jacob et al. makes ranges that are
too narrow when the file is asked about single samples: KWS at 15 dB instead of 26.)
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from regatta_fleet.optimize.train.bridge import Layer, Network
from regatta_fleet.optimize.train.operators import Tensor

__all__ = ["ACTIVATION_BITS", "Imitation", "round_weights", "weight_scale"]

ACTIVATION_BITS = 8
_CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5)  # of the greatest weight
_CLIPPING_BITS = 4  # at more, clipping gains nothing
_TINY = 1e-12
_WITHOUT_GRADIENT = 64  # samples at a time: bounds memory


def weight_scale(weights: Tensor, axis: int, bits: int) -> Tensor:
    """Return the step of each filter, > 0, of the weights' rank with 1 on all axes but the filters'."""
    others = [place for place in range(weights.dim()) if place != axis]
    greatest = weights.detach().abs().amax(others, keepdim=True).clamp_min(_TINY)
    levels = 2 ** (bits - 1) - 1
    if bits > _CLIPPING_BITS:
        return greatest / levels
    best, least = greatest / levels, torch.full_like(greatest, torch.inf)
    for clip in _CLIPS:
        scale = greatest * clip / levels
        error = ((_levels_of(weights.detach(), scale, levels) - weights.detach()) ** 2).sum(others, keepdim=True)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best


def round_weights(weights: Tensor, axis: int, bits: int) -> Tensor:
    """Return the weights on the levels of `bits` bits; gradients pass as they are."""
    levels = 2 ** (bits - 1) - 1
    rounded = _levels_of(weights.detach(), weight_scale(weights, axis, bits), levels)
    return weights + (rounded - weights.detach())


class Imitation:
    """Makes a network compute as its quantized file will."""

    def __init__(self, network: Network, bits: Mapping[int, int]) -> None:
        """Take a network over; `bits` are those of each layer's weights, by tensor. Activations stay in float."""
        self._network = network
        self._layers: dict[int, tuple[Layer, int]] = {
            layer.weights: (layer, bits[layer.weights]) for layer in network.layers
        }
        self._ranges: dict[int, tuple[float, float]] = {}
        network.on_weights = self._rounded_weights

    def observe(self, samples: Tensor) -> None:
        """Round activations too from now on, over the ranges that they have on the samples [n, …] now."""
        found: dict[int, tuple[float, float]] = {}

        def see(tensor: int, values: Tensor) -> Tensor:
            low, high = found.get(tensor, (0.0, 0.0))
            found[tensor] = min(low, float(values.min())), max(high, float(values.max()))
            return values

        self._network.on_activation = see
        with torch.no_grad():
            for part in samples.split(_WITHOUT_GRADIENT):
                self._network.logits(part)
        self._ranges = found
        self._network.on_activation = self._rounded_activation

    def settle(self) -> None:
        """Put the rounded weights in place of the trained ones, and let the network compute plainly again."""
        with torch.no_grad():
            for tensor, (layer, bits) in self._layers.items():
                values = self._network.parameter(tensor)
                values.copy_(round_weights(values, layer.channel_axis, bits))
        self._network.on_weights = self._network.on_activation = lambda index, value: value

    def _rounded_weights(self, tensor: int, values: Tensor) -> Tensor:
        layer, bits = self._layers[tensor]
        return round_weights(values, layer.channel_axis, bits)

    def _rounded_activation(self, tensor: int, values: Tensor) -> Tensor:
        low, high = self._ranges[tensor]
        step = max(high - low, _TINY) / (2**ACTIVATION_BITS - 1)
        zero = round(-low / step)
        inside = values.clamp(-zero * step, (2**ACTIVATION_BITS - 1 - zero) * step)
        rounded = torch.round(inside.detach() / step) * step
        return inside + (rounded - inside.detach())


def _levels_of(weights: Tensor, scale: Tensor, levels: int) -> Tensor:
    return torch.round(weights / scale).clamp(-levels, levels) * scale
