"""Taylor scores: what the loss would change by if a filter went, to first order (Molchanov et al. 2019, eq. 8).

For a filter with weights w_s and bias: (Σ_s g_s·w_s)², g being the gradient of the loss, summed over batches. Filters
of no influence score low however big they are. A score for `prune.filters` and `prune.budget`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from regatta_fleet.optimize.model_file import ModelTree
from regatta_fleet.optimize.prune.coupling import Group
from regatta_fleet.optimize.prune.filters import Scores
from regatta_fleet.optimize.prune.importance import over_layers
from regatta_fleet.optimize.samples import Samples
from regatta_fleet.optimize.train.bridge import Network, load_network
from regatta_fleet.optimize.train.operators import Tensor
from regatta_protocol.errors import Rejected

__all__ = ["taylor_scores"]

_BATCH = 16


def taylor_scores(model: ModelTree, samples: Samples) -> Scores:
    """Return the scores of the model's filters on the samples.

    The loss is the cross-entropy with the labels; without any, half the squared norm of the logits, whose gradient
    asks what the outputs consist of.

    Raises:
        Rejected: when there are no samples, or the model cannot be trained.
    """
    if not len(samples):
        raise Rejected("Taylor scores need samples: give at least one, better a hundred")
    network = load_network(model)
    inputs = torch.from_numpy(samples.x)
    found = {layer.weights: np.zeros(len(network.parameter(layer.weights))) for layer in network.layers}
    for batch in torch.arange(len(inputs)).split(_BATCH):
        network.zero_grad()
        _loss(network.logits(inputs[batch]), samples, batch).backward()
        for layer in network.layers:
            if layer.channel_axis == 0:
                found[layer.weights] += _products(network, layer.weights, layer.bias)

    def scores(group: Group) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        return over_layers(group, {span.tensor: found[span.tensor] for span in group.filters})

    return scores


def _loss(logits: Tensor, samples: Samples, batch: Tensor) -> Tensor:
    if samples.y is None:
        return (logits**2).sum() / 2
    return functional.cross_entropy(logits, torch.from_numpy(samples.y)[batch], reduction="sum")


def _products(network: Network, weights: int, bias: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Return (Σ g·w)² of each filter, float64 [filters]."""
    values = network.parameter(weights)
    product = (values.grad * values).reshape(len(values), -1).sum(1)
    if bias >= 0:
        product = product + network.parameter(bias).grad * network.parameter(bias)
    squares: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = (product**2).detach().numpy().astype(np.float64)
    return squares
