"""Runs a recipe's steps one after another: what is in the cache is taken from there, the rest is made and put there.

The key of a step is the digest of its parameters, its input files, the seed, the accuracy budget, the versions of its
tools and the optimizer's own code. So a run that was killed goes on where it was, and a changed step is made anew with
all that follow from it. The first step gives the float model; the others are run while `pipeline.optimize` works.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import numpy as np

from regatta_fleet.optimize.recipe.cache import StepCache
from regatta_fleet.optimize.recipe.hooks import Hooks
from regatta_fleet.optimize.recipe.models import CompileStep, EvaluateStep, Recipe
from regatta_fleet.optimize.recipe.steps import FLOAT, STEPS, Given, Outcome, Product
from regatta_fleet.optimize.steps import Made
from regatta_fleet.optimize.trials import Trial, Work, split_off
from regatta_protocol.errors import Rejected
from regatta_protocol.ids import Digest, digest_of_bytes, digest_of_file
from regatta_protocol.manifest import LineageStep

__all__ = ["Chain", "ChainInputs", "digest_of_path", "hooks_digest"]

_ROOM = Path(__file__).parents[1]  # of the optimizer's code
_MAX_FILES = 4096  # of a model that is a folder


@dataclass(frozen=True)
class ChainInputs:
    """What a recipe starts from: `given` without what only later steps have."""

    given: Given
    digests: Mapping[str, Digest]  # of model, samples and hooks, as far as there are any


class Chain:
    """A recipe under way."""

    def __init__(self, recipe: Recipe, inputs: ChainInputs, cache: StepCache, scratch: Path) -> None:
        self._recipe = recipe
        self._inputs = inputs
        self._cache = cache
        self._scratch = scratch
        self._history: list[LineageStep] = []
        self._source: Product | None = None
        self._reports: dict[str, bytes] = {}
        self.reused = 0  # steps that were taken from the cache

    @property
    def history(self) -> tuple[LineageStep, ...]:
        """What was done, for the manifest."""
        return tuple(self._history)

    @property
    def reports(self) -> Mapping[str, bytes]:
        """Files of the steps that go beside the bundle's report, by name."""
        return self._reports

    def begin(self) -> Path:
        """Do the first step, and return the float model.

        Raises:
            Rejected: when there is none to be had.
            Misuse: when what it needs is not installed.
        """
        given = self._inputs.given
        given.progress(f"step 1 of {len(self._recipe.steps)}: {self._recipe.steps[0].step}", 0.0)
        half = replace(given, progress=lambda message, share: given.progress(message, 0.5 * share))  # a search is long
        outcome = self._do(0, half, self._inputs.digests)
        product = outcome.products[0]
        if product.file is None:
            raise Rejected(product.reason or "the first step gave no model")
        self._source = product
        return self._folder(0) / product.file

    def make(self, work: Work) -> list[Trial]:
        """Do the other steps on a model that was checked, and return every variant, judged, float32 first."""
        source = self._source
        assert source is not None, "begin comes first"
        trials = [work.judge(Trial(FLOAT, work.model, source.words or ("as given",), macs=work.macs))]
        samples = work.path("tuning.npz")
        fit, held_back = split_off(work)
        given = replace(
            self._inputs.given,
            model=work.normal,
            samples=samples,
            fit=fit or samples,
            held_back=held_back or samples,
            max_drop=work.policy.max_accuracy_drop,
        )
        before: dict[str, tuple[str, ...]] = {}  # by the model's name: what made it of the float model
        macs: dict[str, int | None] = {FLOAT: work.macs}
        for at, step in enumerate(self._recipe.steps[1:], start=1):
            if isinstance(step, EvaluateStep):
                continue
            work.progress(
                f"step {at + 1} of {len(self._recipe.steps)}: {step.step}", 0.1 + 0.5 * at / len(self._recipe.steps)
            )
            outcome = self._try(at, given, work)
            for product in outcome.products:
                if product.name in {trial.name for trial in trials}:
                    continue
                origin = given.model_name
                words = (*before.get(origin, ()), *product.words)
                if isinstance(step, CompileStep):
                    origin = step.variant
                    words = (*next((trial.steps for trial in trials if trial.name == origin), ()), *product.words)
                count = product.macs if product.macs is not None else macs.get(origin)
                path = work.normal if product.file is None else self._folder(at) / product.file
                trial = Trial(product.name, path, words, macs=count, requires=product.requires)
                trials.append(
                    work.judge_made(trial, Made(scheme=product.name, layers=product.layers, reason=product.reason))
                )
                if product.file is not None:
                    given = replace(given, variants={**given.variants, product.name: path})
                if product.file is not None and product.becomes == "model":
                    given = replace(given, model=path, model_name=product.name)
                    before[product.name], macs[product.name] = words, count
        return self._scored(work, trials)

    def _scored(self, work: Work, trials: list[Trial]) -> list[Trial]:
        """Return the trials judged by the hook evaluate, where there is one."""
        hooks = self._inputs.given.hooks
        if hooks is None or "evaluate" not in hooks.defined():
            return trials
        ran = {trial.name: trial for trial in trials if trial.comparison is not None}
        answers = {name: work.path(f"answers-{place}.npz") for place, name in enumerate(ran)}
        for name, trial in ran.items():
            with answers[name].open("wb") as file:
                np.savez(file, out=work.answers[trial.name])
        work.progress("judging by the hook evaluate", 0.58)
        scores = hooks.evaluate(work.path("evaluation.npz"), answers)
        return [work.judge_score(trial, scores.get(trial.name), scores[FLOAT]) for trial in trials]

    def _try(self, at: int, given: Given, work: Work) -> Outcome:
        """Return what the step made; a refusal becomes a product that says so, and the recipe goes on."""
        digests = {"model": digest_of_file(given.model), "samples": digest_of_file(given.samples)}
        if isinstance(self._recipe.steps[at], CompileStep):
            digests |= {name: digest_of_file(path) for name, path in given.variants.items()}
        try:
            return self._do(at, given, digests)
        except Rejected as err:
            name = given.named(self._recipe.steps[at].step)
            return Outcome(products=(Product(name=name, words=(self._recipe.steps[at].step,), reason=str(err)),))

    def _do(self, at: int, given: Given, digests: Mapping[str, Digest]) -> Outcome:
        step, folder = self._recipe.steps[at], self._folder(at)
        kind = STEPS[type(step)]
        tools = {name: version for name in kind.tools if (version := _version(name)) is not None}
        parameters = json.dumps(step.model_dump(mode="json", by_alias=True), sort_keys=True)
        facts = {
            "parameters": parameters,
            "inputs": dict(digests),
            "named": given.model_name,
            "max_drop": given.max_drop,
            "seed": given.seed,
            "tools": tools,
            "code": _code_digest(),
        }
        key = digest_of_bytes(json.dumps(facts, sort_keys=True).encode())
        outcome = self._cache.fetch(key, Outcome, folder)
        if outcome is not None:
            self.reused += 1
            given.progress(f"{step.step}: taken from the cache", 0.0)
        else:
            outcome = self._make(
                key, kind.keeps_refusals, lambda into: kind.run(step, replace(given, folder=into)), folder
            )
        self._reports |= {name: (folder / name).read_bytes() for name in outcome.reports}
        self._history.append(
            LineageStep(
                step=step.step,
                words=tuple(word for product in outcome.products for word in product.words)[:64],
                parameters=parameters,
                key=key,
                seed=given.seed,
                inputs=dict(digests),
                outputs={
                    product.name: digest_of_file(folder / product.file)
                    for product in outcome.products
                    if product.file is not None
                },
                tools=tools,
            )
        )
        return outcome

    def _make(self, key: Digest, keeps_refusals: bool, make: Callable[[Path], Outcome], folder: Path) -> Outcome:
        if keeps_refusals:
            return self._cache.store(key, make, folder)
        folder.mkdir(parents=True, exist_ok=True)
        outcome = make(folder)
        if any(product.reason is not None for product in outcome.products):
            return outcome
        return self._cache.store(key, lambda into: outcome, folder)

    def _folder(self, at: int) -> Path:
        return self._scratch / f"step-{at}"


def digest_of_path(path: Path) -> Digest:
    """Return the digest of a file, or of a folder's files with their names.

    Raises:
        Rejected: when the folder has too many files to be a model.
    """
    if path.is_file():
        return digest_of_file(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    if len(files) > _MAX_FILES:
        raise Rejected(f"{path} has {len(files)} files: a SavedModel has few. Name the model's own folder")
    lines = [f"{file.relative_to(path)} {digest_of_file(file)}" for file in files]
    return digest_of_bytes("\n".join(lines).encode())


def hooks_digest(hooks: Hooks) -> Digest:
    """Return the digest of the hooks, with the Python files beside them, which they may import."""
    lines = [f"{file.name} {digest_of_file(file)}" for file in sorted(hooks.file.parent.glob("*.py"))]
    return digest_of_bytes("\n".join(lines).encode())


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


@functools.cache
def _code_digest() -> Digest:
    """Return the digest of the optimizer's own code: a checkout changes without its version."""
    lines = [f"{file.relative_to(_ROOM)} {digest_of_file(file)}" for file in sorted(_ROOM.rglob("*.py"))]
    return digest_of_bytes("\n".join(lines).encode())
