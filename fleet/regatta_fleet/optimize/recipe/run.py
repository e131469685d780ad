"""Optimizes by a recipe: the story of `regatta model optimize --recipe`.

    recipe, hooks and samples checked -> first step -> pipeline.optimize with the other steps -> bundle, report, lineage

Nothing is written to the output folder until all is done; finished steps stay in the cache, whatever happens to this
process.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from regatta_fleet.models.bundle import check_place
from regatta_fleet.models.bundle_source import BundleSource
from regatta_fleet.optimize.pipeline import Making, optimize
from regatta_fleet.optimize.recipe.cache import DEFAULT_LIMIT_BYTES, StepCache, default_folder
from regatta_fleet.optimize.recipe.chain import Chain, ChainInputs, digest_of_path, hooks_digest
from regatta_fleet.optimize.recipe.document import RecipeFile
from regatta_fleet.optimize.recipe.hooks import Hooks
from regatta_fleet.optimize.recipe.models import SearchStep, TakeStep
from regatta_fleet.optimize.recipe.steps import Given
from regatta_fleet.optimize.report import OptimizeReport
from regatta_fleet.optimize.samples import read_samples, split_samples, write_samples
from regatta_protocol.errors import Rejected
from regatta_protocol.ids import Digest

__all__ = ["RecipeRun", "optimize_by_recipe"]

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class RecipeRun:
    """What the command line gives beside the recipe."""

    output: Path
    model: str | None = None  # a model file or MODULE:FACTORY; None: as the recipe says
    data: Path | None = None  # .npz; None: of the hook calibration
    source: BundleSource = field(default_factory=BundleSource)
    cache: Path | None = None  # [default_folder()]
    cache_bytes: int = DEFAULT_LIMIT_BYTES
    replace: bool = False


def optimize_by_recipe(
    file: RecipeFile, run: RecipeRun, progress: Progress = lambda message, share: None
) -> OptimizeReport:
    """Do what the recipe says, and write bundle and report to `run.output`.

    Raises:
        Rejected: when model, samples, hooks or a step will not do; the text names which.
        Misuse: when an extra is not installed.
    """
    check_place(run.output, run.replace)
    recipe = file.recipe
    hooks = None if file.hooks is None else Hooks(file.hooks, recipe.limits.time, recipe.limits.memory)
    defined = () if hooks is None else hooks.defined()
    if run.model is not None and isinstance(recipe.steps[0], SearchStep):
        raise Rejected(f"{file.path.name} searches for a model, so it takes none: leave {run.model} out")
    with tempfile.TemporaryDirectory(prefix="regatta-recipe-") as scratch:
        data = run.data
        if data is None:
            if hooks is None or "calibration" not in defined:
                raise Rejected("no samples: give --data FILE.npz, or a hook calibration(seed) in the recipe's hooks")
            progress("samples by the hook calibration", 0.0)
            data = Path(scratch) / "calibration.npz"
            hooks.calibration(data, recipe.seed)
        tuning = data
        if run.source.evaluation is None:  # what judges in the end must not be trained on
            tuning = Path(scratch) / "tuning.npz"
            write_samples(tuning, split_samples(read_samples(data))[0])
        given = Given(
            folder=Path(scratch),
            seed=recipe.seed,
            limits=recipe.limits,
            samples=tuning,
            source=run.model,
            beside=file.path.parent,
            hooks=hooks,
            progress=progress,
        )
        inputs = ChainInputs(given, _digests(file, run, tuning, hooks))
        cache = StepCache(run.cache or default_folder(), run.cache_bytes)
        chain = Chain(recipe, inputs, cache, Path(scratch))
        model = chain.begin()
        source = run.source
        if recipe.max_accuracy_drop is not None:
            policy = source.policy.model_copy(update={"max_accuracy_drop": recipe.max_accuracy_drop})
            source = replace(source, policy=policy)
        name = _source_name(file, run)
        making = Making(
            chain.make,
            lambda: chain.history,
            name,
            f"recipe {file.path.name}, seed {recipe.seed}",
            lambda: chain.reports,
        )
        return optimize(model, data, run.output, source, making=making, progress=progress, replace=run.replace)


def _source_name(file: RecipeFile, run: RecipeRun) -> str:
    first = file.recipe.steps[0]
    if isinstance(first, TakeStep):
        named = first.source or run.model
        return Path(named).name if named is not None and named != "hooks" else str(file.recipe.hooks)
    return f"a search by {first.strategy}" if isinstance(first, SearchStep) else file.path.name


def _digests(file: RecipeFile, run: RecipeRun, data: Path, hooks: Hooks | None) -> dict[str, Digest]:
    """Return the digests of what goes into the first step.

    Raises:
        Rejected: when a file that is named is not there.
    """
    found = {"samples": digest_of_path(data)}
    if hooks is not None:
        found["hooks"] = hooks_digest(hooks)
    first = file.recipe.steps[0]
    names: dict[str, Path] = {}
    if isinstance(first, TakeStep):
        named = None if first.source == "hooks" or (first.source or "").count(":") else first.source
        if named is not None:
            names["model"] = file.beside(named)
        elif first.source is None and run.model is not None and ":" not in run.model:
            names["model"] = Path(run.model)
        elif ":" in (first.source or run.model or ""):
            code = Path((first.source or run.model or "").split(":")[0])
            if code.suffix == ".py":
                names["model"] = code
    if isinstance(first, SearchStep):
        names = {"space": file.beside(first.space)} if first.space != "small" else {}
        if first.latency_table is not None:
            names["latency"] = file.beside(first.latency_table)
    for name, path in names.items():
        if not path.exists():
            raise Rejected(f"there is no {path}, which {file.path.name} wants as its {name}")
        found[name] = digest_of_path(path)
    return found
