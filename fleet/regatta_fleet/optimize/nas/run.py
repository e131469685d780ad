"""Runs searches: the front that prepares the latency table and starts a child process for each.

Without a target the latency that half of the space is under is taken: the median of 101 architectures, seeded.
"""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from regatta_fleet.optimize.nas.latency import LatencyTable, local_table, measure_files, read_table
from regatta_fleet.optimize.nas.layers import Layer, Shape, build_layers, every_layer
from regatta_fleet.optimize.nas.objective import SearchResult
from regatta_fleet.optimize.nas.request import SearchAnswer, SearchSpec
from regatta_fleet.optimize.nas.space import SMALL, SearchSpace, read_space
from regatta_fleet.optimize.process import DEFAULT_MEMORY_BYTES, run_module
from regatta_fleet.optimize.recipe.cache import default_folder
from regatta_fleet.optimize.recipe.models import Limits, SearchStep, Strategy
from regatta_fleet.optimize.samples import Samples, read_samples
from regatta_protocol.errors import Misuse, Rejected

__all__ = ["Plan", "interface_of", "layers_of", "plan_search", "run_search", "search_for_recipe", "tables_folder"]

Progress = Callable[[str, float], None]
_DRAWN = 101


@dataclass(frozen=True)
class Plan:
    """A search, but for its seed and where the best one goes."""

    space: SearchSpace
    strategy: Strategy
    budget: int
    candidate_steps: int
    final_steps: int
    target_us: float
    table: LatencyTable
    classes: int
    samples: Path
    test: Path | None = None
    timeout_s: float = 3600.0
    memory_bytes: int = DEFAULT_MEMORY_BYTES


def plan_search(
    step: SearchStep, space: SearchSpace, samples: Path, table: LatencyTable, test: Path | None = None
) -> Plan:
    """Return the plan of a search.

    Raises:
        Rejected: when the samples will not do, the table lacks a layer, or the budget is below one candidate.
    """
    if step.budget < step.candidate_steps:
        raise Rejected(
            f"a budget of {step.budget} training steps is below one candidate's {step.candidate_steps}: give more"
        )
    shape, classes = interface_of(read_samples(samples), samples.name)
    draws = Random(0)  # noqa: S311  # no secret
    drawn = [build_layers(space, space.draw(draws), shape, classes) for _ in range(_DRAWN)]
    median_us = statistics.median(table.estimate_us(layers) for layers in drawn)
    target_us = step.latency_target or max(median_us, 0.001)
    return Plan(
        space,
        step.strategy,
        step.budget,
        step.candidate_steps,
        step.final_steps,
        target_us,
        table,
        classes,
        samples,
        test,
    )


def run_search(plan: Plan, seed: int, output: Path, progress: Progress = lambda message, share: None) -> SearchResult:
    """Return what the search found; its best architecture, trained, is written to `output`.

    Raises:
        Rejected: when the samples or the space will not do, or it takes too long.
        Misuse: when PyTorch is not installed.
    """
    require_torch()
    spec = SearchSpec(
        space=plan.space,
        strategy=plan.strategy,
        seed=seed,
        budget=plan.budget,
        candidate_steps=plan.candidate_steps,
        final_steps=plan.final_steps,
        target_us=plan.target_us,
        table=plan.table,
        classes=plan.classes,
        samples=str(plan.samples),
        test=None if plan.test is None else str(plan.test),
        output=str(output),
    )
    answer = run_module(
        "regatta_fleet.optimize.nas.search",
        spec,
        SearchAnswer,
        what=f"search by {plan.strategy}",
        timeout_s=plan.timeout_s,
        memory_bytes=plan.memory_bytes,
        progress=progress,
    )
    assert answer.result is not None  # without one it has a reason, and that was raised
    return answer.result


def search_for_recipe(
    step: SearchStep,
    *,
    samples: Path,
    output: Path,
    beside: Path,
    seed: int,
    limits: Limits,
    progress: Progress,
) -> tuple[tuple[str, ...], SearchResult]:
    """Do a recipe's search step; returns what was done, in words, and the result."""
    require_torch()
    space = SMALL if step.space == "small" else read_space(beside / step.space)
    if step.latency_table is not None:
        table = read_table(beside / step.latency_table)
    else:
        table = local_table(layers_of(space, samples), tables_folder(), progress)
    plan = replace(plan_search(step, space, samples, table), timeout_s=limits.time, memory_bytes=limits.memory)
    result = run_search(plan, seed, output, progress)
    measured = measure_files({"best": output})["best"] if step.latency_table is None else None
    result = result.model_copy(update={"measured_us": measured})
    words = (
        f"found by {step.strategy} in {result.steps} training steps, seed {seed}: {result.best.words}",
        f"trained for {step.final_steps} steps",
    )
    return words, result


def layers_of(space: SearchSpace, samples: Path) -> dict[str, Layer]:
    """Return each layer that the space has for these samples, by its key."""
    shape, classes = interface_of(read_samples(samples), samples.name)
    return every_layer(space, shape, classes)


def interface_of(samples: Samples, name: str) -> tuple[Shape, int]:
    """Return the shape [h, w, c] of a sample, and how many classes the labels have.

    Raises:
        Rejected: when there are no labels, or the samples are no pictures.
    """
    if samples.y is None:
        raise Rejected(f"{name} has no labels 'y': a search trains on them")
    if samples.x.ndim != 4:
        raise Rejected(f"{name}: 'x' is {list(samples.x.shape)}: a search needs samples [n, h, w, c]")
    height, width, channels = samples.x.shape[1:]
    return (height, width, channels), max(int(samples.y.max()) + 1, 2)


def tables_folder() -> Path:
    """Return where this user's latency tables are kept."""
    return default_folder().with_name("latency")


def require_torch() -> None:
    """Refuse to go on without PyTorch.

    Raises:
        Misuse: naming the extra.
    """
    if importlib.util.find_spec("torch") is None:
        raise Misuse("an architecture search trains with PyTorch, which is missing: pip install 'regatta-edge[train]'")
