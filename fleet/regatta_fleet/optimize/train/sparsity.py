"""Weight pruning while training: zeros grow in number along a schedule, and the other weights learn to do without.

The smallest weights of all layers together become 0 (`prune.weights`), ever more of them along the polynomial of Zhu &
Gupta (2017); they are chosen anew at every change, so that a weight may come back until the target is reached, and held
at 0 for the last quarter of the steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from regatta_fleet.optimize.model_file import ModelTree, model_bytes
from regatta_fleet.optimize.prune.weights import PRUNED_KINDS, Scope, magnitude_masks, polynomial_sparsity
from regatta_fleet.optimize.samples import Samples
from regatta_fleet.optimize.train.bridge import Network, load_network, with_weights
from regatta_fleet.optimize.train.fit import Progress
from regatta_fleet.optimize.train.operators import Tensor
from regatta_fleet.optimize.train.options import FitOptions
from regatta_fleet.optimize.train.teaching import Blend, teach

__all__ = ["Sparsified", "sparsify"]

_RAMP = 0.75  # of the steps, while sparsity rises


@dataclass(frozen=True)
class Sparsified:
    """The content of the .tflite with zeros, and their share of the layers' weights in [0, 1]."""

    content: bytes
    sparsity: float


def sparsify(
    model: ModelTree,
    samples: Samples,
    sparsity: float,
    *,
    scope: Scope = "global",
    blend: Blend | None = None,
    options: FitOptions | None = None,
    seed: int = 0,
    progress: Progress = lambda message, share: None,
) -> Sparsified:
    """Return the model with the share `sparsity` of its weights zero, trained to answer as before.

    Args:
        sparsity: in [0, 1).
        blend: what the model itself counts for as a teacher; by default all, at T = 2.

    Raises:
        Rejected: when the share cannot be, or training cannot (see `teaching.teach`).
    """
    network, teacher = load_network(model), load_network(model)
    schedule = _Schedule(network, sparsity, scope)
    teach(
        network.logits,
        list(network.parameters()),
        teacher.logits,
        samples.x,
        samples.y,
        blend=(blend or Blend(1.0)) if teacher.ends_in_softmax else None,
        options=options or FitOptions(),
        seed=seed,
        after_step=schedule.apply,
        progress=progress,
    )
    return Sparsified(model_bytes(with_weights(model, network)), schedule.zeros())


class _Schedule:
    """Keeps weights at 0, more of them with every call."""

    def __init__(self, network: Network, target: float, scope: Scope) -> None:
        self._weights = {
            layer.weights: network.parameter(layer.weights) for layer in network.layers if layer.kind in PRUNED_KINDS
        }
        self._target, self._scope = target, scope
        self._masks: dict[int, Tensor] = {}
        self._held = False  # whether the target was reached

    def apply(self, share: float) -> None:
        """Set the weights that are to be 0 when `share` of the training is done."""
        if not self._held:
            self._choose(polynomial_sparsity(share / _RAMP, self._target))
            self._held = share >= _RAMP
        with torch.no_grad():
            for tensor, mask in self._masks.items():
                self._weights[tensor].mul_(mask)

    def zeros(self) -> float:
        """Return the share of weights that is 0."""
        count = sum(int((values == 0).sum()) for values in self._weights.values())
        return count / sum(int(values.numel()) for values in self._weights.values())

    def _choose(self, sparsity: float) -> None:
        values = {tensor: weights.detach().numpy() for tensor, weights in self._weights.items()}
        masks = magnitude_masks(values, sparsity=sparsity, scope=self._scope)
        self._masks = {tensor: torch.from_numpy(mask).float() for tensor, mask in masks.items()}
