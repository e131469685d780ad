"""Runs searches: the front that prepares the latency table and starts a child process for each.

Without a target the latency that half of the space is under is taken: the median of 101 architectures, seeded.
"""

from __future__ import annotations

import importlib.util
import shutil
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import numpy as np

from regatta_fleet.optimize.nas.contest import compare_seeds
from regatta_fleet.optimize.nas.latency import LatencyTable, local_table, measure_files, read_table
from regatta_fleet.optimize.nas.layers import Layer, Shape, build_layers, every_layer
from regatta_fleet.optimize.nas.objective import SearchResult, reward
from regatta_fleet.optimize.nas.report import SearchReport, search_markdown
from regatta_fleet.optimize.nas.request import SearchAnswer, SearchSpec
from regatta_fleet.optimize.nas.space import SMALL, SearchSpace, read_space
from regatta_fleet.optimize.plot import can_plot, plot_search
from regatta_fleet.optimize.process import DEFAULT_MEMORY_BYTES, run_module
from regatta_fleet.optimize.recipe.cache import default_folder
from regatta_fleet.optimize.recipe.models import Limits, SearchStep, Strategy
from regatta_fleet.optimize.samples import Samples, read_samples, write_samples
from regatta_protocol.errors import Misuse, Rejected

__all__ = [
    "Plan",
    "interface_of",
    "layers_of",
    "plan_search",
    "require_torch",
    "run_search",
    "search_for_recipe",
    "tables_folder",
]

Progress = Callable[[str, float], None]
_DRAWN = 101
_HELD_BACK = 5  # every fifth sample


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
) -> tuple[tuple[str, ...], dict[str, bytes]]:
    """Do a recipe's search step; returns what was done, in words, and reports by their file names.

    With several seeds every fifth sample is held back: on those the trained results are compared with random search's.
    """
    require_torch()
    space = SMALL if step.space == "small" else read_space(beside / step.space)
    if step.latency_table is not None:
        table = read_table(beside / step.latency_table)
    else:
        table = local_table(layers_of(space, samples), tables_folder(), progress)
    with tempfile.TemporaryDirectory(prefix="regatta-search-") as scratch:
        folder = Path(scratch)
        training, test = _held_back(samples, folder) if step.seeds > 1 else (samples, None)
        plan = replace(
            plan_search(step, space, training, table, test), timeout_s=limits.time, memory_bytes=limits.memory
        )
        results = _over_seeds(plan, range(seed, seed + step.seeds), folder, progress)
        mine = [at for at, result in enumerate(results) if result.strategy == step.strategy]
        taken = max(mine, key=lambda at: results[at].best.reward)
        shutil.copyfile(_place(folder, results[taken]), output)
    if step.latency_table is None:
        measured_us = measure_files({"best": output})["best"]
        results[taken] = results[taken].model_copy(update={"measured_us": measured_us})
    report = SearchReport(
        results=tuple(results),
        taken=taken,
        verdict=_verdict(results, step.strategy) if step.seeds > 1 else None,
        layers_timed=len(table.layers_us),
        space_size=space.size(),
    )
    best = report.chosen
    words = (
        f"found by {step.strategy} in {best.steps} training steps, seed {best.seed}: {best.best.words}",
        f"trained for {step.final_steps} steps",
    )
    files = {"search.json": report.model_dump_json(indent=2).encode(), "search.md": search_markdown(report).encode()}
    if can_plot():
        files |= plot_search(report)
    return words, files


def _over_seeds(plan: Plan, seeds: range, folder: Path, progress: Progress) -> list[SearchResult]:
    """Return a search for each seed, and with several of them random search's beside."""
    strategies: tuple[Strategy, ...] = (plan.strategy,)
    if len(seeds) > 1 and plan.strategy != "random":
        strategies = (plan.strategy, "random")
    total = len(strategies) * len(seeds)
    results: list[SearchResult] = []
    for strategy in strategies:
        for seed in seeds:
            begun = len(results)

            def told(message: str, share: float, begun: int = begun, seed: int = seed) -> None:
                progress(message if total == 1 else f"seed {seed}, {message}", (begun + share) / total)

            output = folder / f"{strategy}-{seed}.tflite"
            results.append(run_search(replace(plan, strategy=strategy), seed, output, told))
    return results


def _place(folder: Path, result: SearchResult) -> Path:
    return folder / f"{result.strategy}-{result.seed}.tflite"


def _held_back(samples: Path, folder: Path) -> tuple[Path, Path]:
    given = read_samples(samples)
    rest = np.arange(len(given)) % _HELD_BACK == _HELD_BACK - 1
    training, test = folder / "training.npz", folder / "test.npz"
    write_samples(training, given.chosen(~rest))
    write_samples(test, given.chosen(rest))
    return training, test


def _verdict(results: list[SearchResult], strategy: Strategy) -> str:
    if strategy == "random":
        return "it is random search"

    def worth(name: str) -> list[float]:
        return [
            reward(result.trained_accuracy or 0.0, result.best.latency_us, result.target_us)
            for result in results
            if result.strategy == name
        ]

    return compare_seeds(worth(strategy), worth("random")).verdict


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
