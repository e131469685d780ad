"""The lab's layers, and the jobs that a run divides them into: one layer of one story, with a quota of points."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Protocol

from crash.case import Case, KnownState
from crash.cuts import Cuts
from crash.faults import Faults
from crash.kills import Kills, RandomKills
from crash.scenarios import SCENARIOS

__all__ = ["LAYERS", "Job", "Point", "Result", "divide", "hit_all", "hit_one"]


class _Layer(Protocol):
    """The points of one story, by number from 0."""

    def __len__(self) -> int: ...

    def hit(self, number: int) -> str | None:
        """Return the broken promise, or None. Raises KnownState when the point's state was hit before."""


LAYERS: Mapping[str, Callable[[Case], _Layer]] = {"kill": Kills, "random": RandomKills, "error": Faults, "cut": Cuts}
_SHARES = {"kill": 0.4, "random": 0.05, "error": 0.25, "cut": 0.3}  # of a run's points
_MAX_SEEDS = 50  # tried for a job's quota


@dataclass(frozen=True)
class Point:
    """One moment of one story, and what happens at it."""

    layer: str
    scenario: str
    seed: int
    number: int

    def __str__(self) -> str:
        return f"{self.layer} {self.number} of {self.scenario} with seed {self.seed}"

    @property
    def again(self) -> str:
        """Return the command that hits this point alone."""
        where = f"--layer {self.layer} --scenario {self.scenario} --seed {self.seed} --point {self.number}"
        return f"./run crashlab {where}"


@dataclass(frozen=True)
class Result:
    """What came of a point."""

    point: Point
    violation: str | None

    def as_json(self) -> dict[str, object]:
        """Return it for a document."""
        return {**asdict(self.point), "violation": self.violation, "again": self.point.again}


@dataclass(frozen=True)
class Job:
    """So many points of one layer of one story, of as many seeds from the first as it takes."""

    layer: str
    scenario: str
    seed: int
    quota: int
    bug: str | None


def divide(points: int, seed: int, layers: Sequence[str], scenarios: Sequence[str], bug: str | None) -> list[Job]:
    """Return the jobs that hit so many points, spread over layers by their shares and evenly over stories."""
    total = sum(_SHARES[layer] for layer in layers)
    jobs: list[Job] = []
    left, shares = points, total
    for layer in layers:
        share = round(left * _SHARES[layer] / shares)
        left, shares = left - share, shares - _SHARES[layer]
        for index, scenario in enumerate(scenarios):
            quota = (share + index) // len(scenarios)  # so that they sum up to the share
            if quota:
                jobs.append(Job(layer, scenario, seed, quota, bug))
    return jobs


def hit_all(job: Job, folder: Path) -> Iterator[Result]:
    """Hit the job's points, each once."""
    left = job.quota
    for seed in range(job.seed, job.seed + _MAX_SEEDS):
        place = folder / f"{job.layer}-{job.scenario}-{seed}"
        layer = LAYERS[job.layer](Case(SCENARIOS[job.scenario], seed, place, job.bug))
        for number in _drawn(len(layer), Random(seed), left):
            if left == 0:
                break
            try:
                violation = layer.hit(number)
            except KnownState:
                continue
            left -= 1
            yield Result(Point(job.layer, job.scenario, seed, number), violation)
        shutil.rmtree(place, ignore_errors=True)
        if left == 0:
            return


def hit_one(point: Point, folder: Path, bug: str | None) -> Result | None:
    """Hit one point; None when its layer has no such number."""
    layer = LAYERS[point.layer](Case(SCENARIOS[point.scenario], point.seed, folder / "one", bug))
    return Result(point, layer.hit(point.number)) if 0 <= point.number < len(layer) else None


def _drawn(count: int, chance: Random, wanted: int) -> list[int]:
    """Return points in the order of hitting: a sample in rising order first, then the others, for those that are known.

    Power cuts that come in order share their disk's history.
    """
    sample = sorted(chance.sample(range(count), min(count, wanted)))
    drawn = set(sample)
    return sample + [number for number in range(count) if number not in drawn]
