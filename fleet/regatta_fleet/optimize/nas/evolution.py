"""Strategies that ask for one candidate after another: random search, the control, and regularized evolution.

Both draw from a seeded generator alone, so the same seed and rewards give the same candidates.
"""

from __future__ import annotations

from collections import deque
from random import Random
from typing import Protocol

from regatta_fleet.optimize.nas.space import Genes, SearchSpace

__all__ = ["RandomSearch", "RegularizedEvolution", "Sampler"]

_POPULATION = 12  # the paper has 100 of 20,000 candidates; a small search has some 50
_SAMPLE = 4  # a third of the population; the paper a quarter


class Sampler(Protocol):
    """A strategy: asked for a candidate, then told what it was worth."""

    def propose(self) -> Genes: ...

    def tell(self, genes: Genes, reward: float) -> None: ...


class RandomSearch:
    """Every architecture as likely as any other; none is proposed twice while there are others."""

    def __init__(self, space: SearchSpace, seed: int) -> None:
        self._space = space
        self._random = Random(seed)  # noqa: S311  # no secret
        self._seen: set[Genes] = set()

    def propose(self) -> Genes:
        """Return the next candidate."""
        genes = self._space.draw(self._random)
        while genes in self._seen and len(self._seen) < self._space.size():
            genes = self._space.draw(self._random)
        self._seen.add(genes)
        return genes

    def tell(self, genes: Genes, reward: float) -> None:
        """Learn nothing: this is the control."""


class RegularizedEvolution:
    """Aging evolution (Real et al. 2019, algorithm 1).

    The best of a random sample of the population is mutated; the child joins the population and the oldest dies. A
    child that was tried before is mutated on, for its training would tell nothing new.
    """

    def __init__(self, space: SearchSpace, seed: int, population: int = _POPULATION, sample: int = _SAMPLE) -> None:
        self._space = space
        self._random = Random(seed)  # noqa: S311  # no secret
        self._population: deque[tuple[Genes, float]] = deque(maxlen=population)
        self._sample = sample
        self._seen: set[Genes] = set()

    def propose(self) -> Genes:
        """Return the next candidate."""
        if len(self._population) < (self._population.maxlen or 1):
            genes = self._space.draw(self._random)
        else:
            drawn = [self._population[self._random.randrange(len(self._population))] for _ in range(self._sample)]
            genes = self._space.mutate(max(drawn, key=lambda one: one[1])[0], self._random)
        while genes in self._seen and len(self._seen) < self._space.size():
            genes = self._space.mutate(genes, self._random)
        self._seen.add(genes)
        return genes

    def tell(self, genes: Genes, reward: float) -> None:
        """Take the candidate into the population; the oldest dies."""
        self._population.append((genes, reward))
