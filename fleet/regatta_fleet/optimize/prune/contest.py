"""Takes a share of the filters out in two ways, and keeps the one that answers better on samples held back.

Uniform: the share of every group of filters. By the output: as many multiply-accumulates as that saves, where the
output feels it least (`budget`). At an eighth of the filters, KWS has 22 dB by the output and 15 uniform, and VWW 20
and 30. So both are tried, where the second does not take too long. Answers lost on some dozens of samples are too few
to tell two ways apart: they decide where only one keeps the budget, and else the output's noise does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from regatta_fleet.optimize.activations import record
from regatta_fleet.optimize.compare import Comparison, compare, refusal
from regatta_fleet.optimize.cost import count_macs
from regatta_fleet.optimize.model_file import ModelTree, model_bytes
from regatta_fleet.optimize.prune.budget import output_prices
from regatta_fleet.optimize.prune.filters import PrunedModel, prunable_groups, prune_filters
from regatta_fleet.optimize.prune.refit import refit
from regatta_fleet.optimize.samples import Samples

__all__ = ["Contest", "Contestant"]

Floats = npt.NDArray[np.float32]
_ALIKE = 1.02  # of the multiply-accumulates: filters go in steps, and some models cannot lose as many by the output
_MOST_WORK = 400e6  # multiply-accumulates × groups that the output is asked about: VWW has 200e6, and takes 12 s


@dataclass(frozen=True)
class Contestant:
    """A pruned and refitted model, with how it stands beside the original on the samples held back."""

    way: str
    model: ModelTree
    comparison: Comparison
    filters: int  # gone
    refitted: int  # layers
    reason: str | None  # why it is not good enough

    @property
    def rank(self) -> tuple[bool, float]:
        """Less is better."""
        return self.reason is not None, -self.comparison.snr_db

    @property
    def figure(self) -> str:
        """Return how good it is, in words."""
        drop, noise = self.comparison.drop, f"{self.comparison.snr_db:.1f} dB"
        return noise if drop is None else f"{noise} and {100 * drop:.1f} points lost"


class Contest:
    """The two ways to prune one model, at any share."""

    def __init__(self, model: ModelTree, fit: Floats, held_back: Samples, max_drop: float) -> None:
        """Raise Rejected when nothing can be pruned; the text says what stands in the way."""
        self._model, self._fit, self._held_back, self._max_drop = model, fit, held_back, max_drop
        self._wanted = self._answers(model)
        quick = count_macs(model) * len(prunable_groups(model)) <= _MOST_WORK
        self._prices = output_prices(model, "reconstruction", fit) if quick else None

    def winner(self, share: float) -> tuple[Contestant, tuple[str, ...]]:
        """Return the better model without about `share` of its filters, and how it was made.

        Raises:
            Rejected: when the share is out of range, or takes no filter.
        """
        uniform = prune_filters(self._model, share, "reconstruction", self._fit)
        entered = [self._judged("of every group alike", uniform)]
        macs = count_macs(uniform.model)
        if self._prices is not None:
            chosen = self._prices.pruned(1 - macs / count_macs(self._model))
            if count_macs(chosen.model) <= _ALIKE * macs:
                entered.append(self._judged("where the output feels it least", chosen))
        best, *others = sorted(entered, key=lambda one: one.rank)
        words = [f"{best.filters} filters pruned {best.way}", f"{best.refitted} layers refitted"]
        words += [f"on samples held back {best.figure}, {other.way} {other.figure}" for other in others]
        return best, tuple(words)

    def _judged(self, way: str, pruned: PrunedModel) -> Contestant:
        layers = refit(self._model, pruned, self._fit)
        comparison = compare(self._answers(pruned.model), self._wanted, self._held_back.y)
        reason = refusal(comparison, self._max_drop)
        return Contestant(way, pruned.model, comparison, pruned.removed, layers, reason)

    def _answers(self, model: ModelTree) -> Floats:
        output = int(model.subgraphs[0].outputs[0])
        return record(model_bytes(model), self._held_back.x, [output])[output]
