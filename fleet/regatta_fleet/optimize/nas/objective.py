"""What a search looks for, and what came out: the reward, the Pareto front, the result as a document. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import Field

from regatta_fleet.optimize.nas.space import Genes
from regatta_fleet.optimize.recipe.models import Strategy
from regatta_protocol.wire import Wire
from regatta_runtimes.choice.pareto import dominates

__all__ = ["LATENCY_WEIGHT", "Found", "SearchResult", "front_of", "reward"]

LATENCY_WEIGHT = 0.07  # MnasNet's (Tan et al. 2019, section 3.1): twice the latency is worth 5 % of accuracy


class Found(Wire):
    """An architecture with its figures."""

    genes: Genes
    words: str
    accuracy: float  # on samples of the search that did not train it
    latency_us: float  # estimated from the table
    reward: float
    macs: int
    weights: int
    train_steps: int  # of the search until then, these included


class SearchResult(Wire):
    """One search: everything that was tried, in order."""

    strategy: Strategy
    seed: int
    budget: int  # training steps: gradients of one batch
    steps: int  # that were spent
    candidate_steps: int
    target_us: float
    latency_from: str
    tried: tuple[Found, ...]
    front: tuple[int, ...]  # places in `tried`, the fastest first
    best: Found
    final_steps: int
    trained_accuracy: float | None = None  # of the best, trained in full, on samples that nothing was chosen by
    measured_us: float | None = None  # of the best, on this machine
    duration_s: float = Field(ge=0)


def reward(accuracy: float, latency_us: float, target_us: float) -> float:
    """Return accuracy, marked down where the latency is over the target: accuracy · (target / latency)^0.07.

    Tan et al. 2019, eq. 3, with alpha 0: being faster than the target earns nothing.
    """
    if latency_us <= target_us:
        return accuracy
    return accuracy * math.pow(target_us / latency_us, LATENCY_WEIGHT)


def front_of(found: Sequence[Found]) -> tuple[int, ...]:
    """Return the places of those that no other beats in both accuracy and latency, the fastest first."""
    costs = [(one.latency_us, 1 - one.accuracy) for one in found]
    first = {cost: at for at, cost in reversed(list(enumerate(costs)))}  # of equal ones the first
    front = [cost for cost in first if not any(dominates(other, cost) for other in first)]
    return tuple(first[cost] for cost in sorted(front))
