"""What each step of a recipe does: a table from its model to a function, and what its result depends on.

A step reads the file that it is `Given`, writes files into the given folder, and returns its products. To add one: a
model in `models.RecipeStep`, a function here, a row in `STEPS`. Models only run in child processes (`optimize.steps`).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from regatta_fleet.optimize.recipe.compilers import COMPILERS, compile_model
from regatta_fleet.optimize.recipe.hooks import Hooks
from regatta_fleet.optimize.recipe.models import (
    CompileStep,
    DistillStep,
    EvaluateStep,
    Limits,
    MixStep,
    PruneStep,
    QatStep,
    QuantizeStep,
    SearchStep,
    SparsifyStep,
    TakeStep,
)
from regatta_fleet.optimize.report import LayerReport
from regatta_fleet.optimize.sources.resolve import resolve_source
from regatta_fleet.optimize.steps import Attempt, Made, Prune, Quantize, Search, run_step
from regatta_fleet.optimize.train.steps import Distill, Sparsify, TrainQuantized, run_training
from regatta_protocol.errors import Rejected
from regatta_protocol.wire import Wire

__all__ = ["FLOAT", "STEPS", "Given", "Outcome", "Product", "StepKind"]

FLOAT = "float32"  # the variant that all others are held against
Progress = Callable[[str, float], None]


class Product(Wire):
    """A file that a step made, or why it made none."""

    name: str  # the variant's
    file: str | None = None  # in the step's folder; None beside a reason
    words: tuple[str, ...] = ()
    becomes: Literal["model", "variant"] = "variant"  # model: what the steps after it start from
    requires: str | None = None  # the delegate that it needs
    macs: int | None = None
    layers: tuple[LayerReport, ...] = ()
    reason: str | None = None


class Outcome(Wire):
    """What a step made."""

    products: tuple[Product, ...] = ()
    reports: tuple[str, ...] = ()  # files in the step's folder that go beside the bundle's report


@dataclass(frozen=True)
class Given:
    """What a step has at hand."""

    folder: Path  # to write to
    seed: int
    limits: Limits
    samples: Path  # .npz: x, and y where labelled; never those of the evaluation
    source: str | None = None  # what the command line names as MODEL
    beside: Path = Path()  # the recipe's folder
    hooks: Hooks | None = None
    progress: Progress = lambda message, share: None
    # From here on: for steps after the first.
    model: Path = Path()  # float, normalized
    model_name: str = FLOAT
    fit: Path = Path()  # of `samples`, those to fit on
    held_back: Path = Path()  # and those to judge by
    max_drop: float = 0.0
    variants: Mapping[str, Path] = field(default_factory=dict)

    def named(self, name: str) -> str:
        """Return the name of a variant made of the current model."""
        return name if self.model_name == FLOAT else f"{name}-{self.model_name}"


@dataclass(frozen=True)
class StepKind:
    """How a step runs, and what its result depends on besides files, parameters and seed."""

    run: Callable[..., Outcome]  # of the step's own model and Given
    tools: tuple[str, ...] = ()  # distributions, by their versions
    keeps_refusals: bool = True  # False: a refusal says something of this machine, which may be better next time


def _take(step: TakeStep, given: Given) -> Outcome:
    output = given.folder / "float32.tflite"
    source = step.source
    if source is None:
        source = given.source or ("hooks" if given.hooks is not None else None)
    elif source != "hooks" and ":" not in source:
        source = str(given.beside / source)
    if source is None:
        raise Rejected("no model to take: name a MODEL, or `source` in the recipe's take step, or give it hooks")
    if source == "hooks":
        if given.hooks is None:
            raise Rejected("the take step wants the model of the hooks, and the recipe has none: give `hooks:`")
        words = given.hooks.make_model(given.samples, output, given.seed, step.layout)
    else:
        words = resolve_source(
            source,
            output,
            samples=given.samples,
            layout=step.layout,
            signature=step.signature,
            timeout_s=given.limits.time,
            memory_bytes=given.limits.memory,
        )
    return Outcome(products=(Product(name=FLOAT, file=output.name, words=words, becomes="model"),))


def _search(step: SearchStep, given: Given) -> Outcome:
    from regatta_fleet.optimize.nas.run import search_for_recipe

    output = given.folder / "float32.tflite"
    words, reports = search_for_recipe(
        step,
        samples=given.samples,
        output=output,
        beside=given.beside,
        seed=given.seed,
        limits=given.limits,
        progress=given.progress,
    )
    for name, content in reports.items():
        (given.folder / name).write_bytes(content)
    product = Product(name=FLOAT, file=output.name, words=words, becomes="model")
    return Outcome(products=(product,), reports=tuple(reports))


def _prune(step: PruneStep, given: Given) -> Outcome:
    output = given.folder / f"{given.named('pruned')}.tflite"
    asked = Prune(
        model=str(given.model),
        samples=str(given.fit),
        held_back=str(given.held_back),
        output=str(output),
        shares=step.shares,
        max_drop=given.max_drop,
    )
    attempts = run_step(asked, timeout_s=given.limits.time, memory_bytes=given.limits.memory).attempts
    return _attempted(attempts, output, "of the filters, or as much work, pruned by reconstruction")


def _distill(step: DistillStep, given: Given) -> Outcome:
    return _trained(Distill, "distilled", step.shares, given, "of the multiply-accumulates pruned")


def _sparsify(step: SparsifyStep, given: Given) -> Outcome:
    return _trained(Sparsify, "sparse", step.shares, given, "of the weights at 0")


def _trained(
    kind: type[Distill] | type[Sparsify], name: str, shares: tuple[float, ...], given: Given, what: str
) -> Outcome:
    output = given.folder / f"{given.named(name)}.tflite"
    asked = kind(
        model=str(given.model),
        samples=str(given.fit),
        held_back=str(given.held_back),
        output=str(output),
        shares=shares,
        max_drop=given.max_drop,
        seed=given.seed,
    )
    attempts = run_training(asked, timeout_s=given.limits.time, memory_bytes=given.limits.memory).attempts
    return _attempted(attempts, output, what)


def _attempted(attempts: Sequence[Attempt], output: Path, what: str) -> Outcome:
    """Return the last of the shares that were tried, which is the first that kept the accuracy, if any did."""
    name, last = output.stem, attempts[-1]
    words = (f"{100 * last.share:g} % {what}", *last.notes)
    if last.reason is not None:
        reason = f"on samples held back from tuning, {last.reason}"
        return Outcome(products=(Product(name=name, words=words, reason=reason),))
    return Outcome(products=(Product(name=name, file=output.name, words=words, becomes="model", macs=last.cost.macs),))


def _qat(step: QatStep, given: Given) -> Outcome:
    name = given.named("int8-trained" if step.precision == "int8" else "int4-trained")
    output = given.folder / f"{name}.tflite"
    asked = TrainQuantized(
        model=str(given.model),
        samples=str(given.samples),
        output=str(output),
        precision=step.precision,
        seed=given.seed,
    )
    made = run_training(asked, timeout_s=given.limits.time, memory_bytes=given.limits.memory).made
    if made is None or made.reason is not None:
        reason = "training gave no file" if made is None else made.reason
        return Outcome(products=(Product(name=name, words=("quantization-aware training",), reason=reason),))
    return Outcome(products=(Product(name=name, file=output.name, words=made.notes, layers=made.layers),))


def _quantize(step: QuantizeStep, given: Given) -> Outcome:
    outputs = {scheme: str(given.folder / f"{given.named(scheme)}.tflite") for scheme in step.schemes}
    asked = Quantize(model=str(given.model), samples=str(given.samples), outputs=outputs)
    made = run_step(asked, timeout_s=given.limits.time, memory_bytes=given.limits.memory).made
    return Outcome(products=tuple(_made(one, given) for one in made))


def _mix(step: MixStep, given: Given) -> Outcome:
    output = given.folder / f"{given.named(step.step + 'ed')}.tflite"
    asked = Search(model=str(given.model), samples=str(given.samples), output=str(output), max_drop=given.max_drop)
    try:
        made = run_step(asked, timeout_s=given.limits.time, memory_bytes=given.limits.memory).made[0]
    except Rejected as err:
        made = Made(scheme="mixed", notes=("precision by layer",), reason=str(err))
    return Outcome(products=(_made(made, given),))


def _made(made: Made, given: Given) -> Product:
    name = given.named(made.scheme)
    file = None if made.reason is not None else f"{name}.tflite"
    return Product(name=name, file=file, words=made.notes, layers=made.layers, reason=made.reason)


def _compile(step: CompileStep, given: Given) -> Outcome:
    name, source = f"{step.variant}-{step.accelerator}", given.variants.get(step.variant)
    delegate = step.delegate or COMPILERS[step.accelerator].delegate
    if source is None:
        known = ", ".join(given.variants) or "none"
        reason = f"there is no variant {step.variant!r} to compile: the steps before made {known}"
        return Outcome(products=(Product(name=name, requires=delegate, reason=reason),))
    scratch = given.folder / "compiler"
    scratch.mkdir()
    model = scratch / f"{step.variant}-source" / f"{step.variant}.tflite"
    model.parent.mkdir()
    shutil.copyfile(source, model)
    try:
        words = compile_model(step, model, given.folder / f"{name}.tflite", scratch, given.limits.time)
    except Rejected as err:
        return Outcome(products=(Product(name=name, requires=delegate, reason=str(err)),))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Outcome(products=(Product(name=name, file=f"{name}.tflite", words=words, requires=delegate),))


def _evaluate(step: EvaluateStep, given: Given) -> Outcome:
    return Outcome()  # the judgment itself follows every recipe (chain.py); the step only says how


_QUANTIZER = ("ai-edge-quantizer", "ai-edge-litert", "numpy")
STEPS: dict[type[BaseModel], StepKind] = {
    TakeStep: StepKind(_take, ("litert-torch", "torch", "tensorflow", "onnx2torch", "numpy")),
    SearchStep: StepKind(_search, ("torch", "ai-edge-litert", "numpy")),
    PruneStep: StepKind(_prune, ("ai-edge-litert", "numpy")),
    DistillStep: StepKind(_distill, ("torch", "ai-edge-litert", "numpy")),
    SparsifyStep: StepKind(_sparsify, ("torch", "ai-edge-litert", "numpy")),
    QatStep: StepKind(_qat, ("torch", *_QUANTIZER)),
    QuantizeStep: StepKind(_quantize, _QUANTIZER),
    MixStep: StepKind(_mix, _QUANTIZER),
    CompileStep: StepKind(_compile, keeps_refusals=False),
    EvaluateStep: StepKind(_evaluate),
}
