"""How much the filters of a coupled group matter, judged by their weights alone.

Each criterion scores the filters of each layer that produces the group; a layer's scores are divided by their mean so
that layers weigh alike, and summed over the layers.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from regatta_fleet.optimize.model_file import ModelTree, constant
from regatta_fleet.optimize.prune.coupling import Group
from regatta_protocol.errors import Rejected

__all__ = ["WeightCriterion", "over_layers", "weight_importance"]

WeightCriterion = Literal["l1", "l2", "geometric-median"]
Doubles = npt.NDArray[np.float64]

_MAX_FILTERS = 4096  # the distances of all pairs: 128 MiB


def weight_importance(model: ModelTree, group: Group, criterion: WeightCriterion) -> Doubles:
    """Return the importance of each channel of the group, float64 [size] >= 0.

    "l1" and "l2" are the norms of the filters (Li et al. 2017, He et al. 2018). "geometric-median" is the sum of a
    filter's distances to all others of its layer: those near the median of all are best replaced by the rest, however
    big they are (He et al. 2019, eq. 5).

    Raises:
        Rejected: when a layer's weights are not constant.
    """
    return over_layers(group, {span.tensor: _scores(model, span.tensor, criterion) for span in group.filters})


def over_layers(group: Group, scores: dict[int, Doubles]) -> Doubles:
    """Return the sum over the group's layers of their scores [size] >= 0 by weights tensor, each of mean 1."""
    total: Doubles = np.zeros(group.size)
    for span in group.filters:
        found = scores[span.tensor]
        total += found / max(float(found.mean()), float(np.finfo(np.float64).tiny))
    return total


def _scores(model: ModelTree, tensor: int, criterion: WeightCriterion) -> Doubles:
    weights = constant(model, model.subgraphs[0].tensors[tensor])
    if weights is None:
        raise Rejected(f"the weights of tensor {tensor} are not constant: this layer cannot be pruned")
    flat = weights.reshape(len(weights), -1).astype(np.float64)
    if criterion == "l1":
        sums: Doubles = np.abs(flat).sum(1)
        return sums
    if criterion == "l2":
        lengths: Doubles = np.sqrt((flat**2).sum(1))
        return lengths
    if len(flat) > _MAX_FILTERS:
        raise Rejected(f"the geometric median of {len(flat)} filters takes all pairs: use a norm above {_MAX_FILTERS}")
    squares = (flat**2).sum(1)
    distances: Doubles = np.sqrt(np.maximum(squares[:, None] + squares[None, :] - 2 * flat @ flat.T, 0.0)).sum(1)
    return distances
