"""What a search's child is asked, and what it answers. Typed data alone: no framework is imported."""

from __future__ import annotations

from pydantic import Field

from regatta_fleet.optimize.nas.latency import LatencyTable
from regatta_fleet.optimize.nas.objective import SearchResult
from regatta_fleet.optimize.nas.space import SearchSpace
from regatta_fleet.optimize.process import ChildAnswer
from regatta_fleet.optimize.recipe.models import Strategy
from regatta_protocol.wire import Wire

__all__ = ["SearchAnswer", "SearchSpec"]


class SearchSpec(Wire):
    """One search."""

    space: SearchSpace
    strategy: Strategy
    seed: int
    budget: int = Field(ge=1)
    candidate_steps: int = Field(ge=1)
    final_steps: int = Field(ge=1)
    target_us: float = Field(gt=0)
    table: LatencyTable
    classes: int = Field(ge=2)
    samples: str  # .npz: train and score
    test: str | None = None  # .npz: the best one's accuracy in the end
    output: str  # the best one, trained, as .tflite


class SearchAnswer(ChildAnswer):
    """What came out."""

    result: SearchResult | None = None
