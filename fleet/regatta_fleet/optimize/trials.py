"""The variants of one optimization: made, compared with the float model on the evaluation samples, refused or kept.

What can be made is `VariantName`; `VARIANT_SETS` are sensible choices of them. Every file is made and run in a child
process (`steps`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np
import numpy.typing as npt

from regatta_fleet.optimize.compare import Comparison, compare, refusal
from regatta_fleet.optimize.evaluate import answers_of
from regatta_fleet.optimize.quantize.schemes import SCHEMES, Scheme
from regatta_fleet.optimize.report import LayerReport
from regatta_fleet.optimize.samples import Samples, write_samples
from regatta_fleet.optimize.steps import Check, Made, Prune, Quantize, Search, run_step
from regatta_protocol.errors import Rejected
from regatta_protocol.manifest import Policy

__all__ = [
    "PRUNING_SHARES",
    "VARIANT_SETS",
    "TrainedName",
    "Trial",
    "VariantName",
    "Work",
    "answer",
    "check_model",
    "make_trials",
    "parse_variants",
    "quantize_pruned",
    "split_off",
]

Floats = npt.NDArray[np.float32]
Progress = Callable[[str, float], None]
Untrained = Literal[Scheme, "int8-pruned", "mixed"]
TrainedName = Literal["int8-distilled", "int8-trained", "int4-trained", "sparse"]  # these need PyTorch
VariantName = Literal[Untrained, TrainedName]

VARIANT_SETS: dict[str, tuple[VariantName, ...]] = {
    "quick": ("int8", "int8-pruned"),
    "standard": ("int8", "int8-unfolded", "int8-float-stem", "int8-pruned", "int8-weights", "float16"),
    "all": get_args(Untrained),
    "trained": get_args(VariantName),
}
_SEARCH_S = 600.0  # two files a layer and one a step; KWS with ten layers takes 1 s, deep networks minutes

# Tried from the greatest. Beyond, only training keeps accuracy; KWS (.932) keeps .904 at a quarter, .76 at a half.
PRUNING_SHARES = (0.75, 0.625, 0.5, 0.375, 0.25, 0.125)
_HELD_BACK = 3  # every third tuning sample judges how much to prune and is not refitted on


@dataclass(frozen=True)
class Trial:
    """A variant that was made, with how it stands beside float."""

    name: str
    path: Path
    steps: tuple[str, ...]
    comparison: Comparison | None = None  # None for one that never ran on the evaluation samples
    macs: int | None = None
    refused: str | None = None
    layers: tuple[LayerReport, ...] = ()
    score: float | None = None  # by the user's own metric, in [0, 1]
    requires: str | None = None  # the delegate without which it does not run: not judged here


@dataclass
class Work:
    """What one optimization has at hand."""

    folder: Path
    model: Path
    tuning: Samples
    evaluation: Samples
    policy: Policy
    progress: Progress
    macs: int | None = None  # of the float model
    float_answers: Floats = field(default_factory=lambda: np.zeros((0, 1), np.float32))
    answers: dict[str, Floats] = field(default_factory=dict)  # by the variant's name, of those that ran

    @property
    def normal(self) -> Path:
        """Where the float model lies as newer tools want it."""
        return self.path("normal.tflite")

    def path(self, name: str) -> Path:
        """Return a path in the scratch folder."""
        return self.folder / name

    def judge(self, trial: Trial) -> Trial:
        """Return the variant with its answers compared, refused where they are too bad or do not come."""
        try:
            answers = answers_of(trial.path, self.path("evaluation.npz"))
        except Rejected as err:
            if trial.path == self.model:
                raise
            return replace(trial, refused=str(err))
        self.answers[trial.name] = answers
        comparison = compare(answers, self.float_answers, self.evaluation.y)
        return replace(trial, comparison=comparison, refused=refusal(comparison, self.policy.max_accuracy_drop))

    def judge_made(self, trial: Trial, made: Made) -> Trial:
        """Return the variant that a step made, judged; or refused for the step's reason."""
        if made.reason is not None:
            return replace(trial, refused=made.reason)
        if trial.requires is not None:
            return replace(trial, layers=made.layers)
        return self.judge(replace(trial, layers=made.layers))

    def judge_score(self, trial: Trial, score: float | None, float_score: float) -> Trial:
        """Return the variant judged by the user's own metric in place of top-1 accuracy; None: it has no score."""
        if score is None:
            return trial
        allowed, drop, reason = self.policy.max_accuracy_drop, float_score - score, None
        if drop > allowed + 1e-12:
            reason = f"scores {score:.4f} by the hook evaluate, float {float_score:.4f}: {allowed:g} less is allowed"
        return replace(trial, score=score, refused=reason)


def parse_variants(text: str) -> tuple[VariantName, ...]:
    """Return the variants that the text names: a set, or names with commas between.

    Raises:
        Rejected: naming what there is no such variant of.
    """
    if text in VARIANT_SETS:
        return VARIANT_SETS[text]
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    unknown = [name for name in names if name not in get_args(VariantName)]
    if unknown:
        raise Rejected(
            f"there is no variant {unknown[0]!r}: give {', '.join(VARIANT_SETS)}, or names out of "
            f"{', '.join(get_args(VariantName))} with commas between"
        )
    return cast("tuple[VariantName, ...]", names)


def check_model(work: Work) -> None:
    """Check that the float model will do, and write the samples and the normalized model to the scratch folder.

    Raises:
        Rejected: naming the tensor or operator that will not.
    """
    write_samples(work.path("tuning.npz"), work.tuning)
    write_samples(work.path("evaluation.npz"), work.evaluation)
    checked = run_step(Check(model=str(work.model), output=str(work.normal)))
    work.macs = None if checked.cost is None else checked.cost.macs


def answer(work: Work) -> None:
    """Let the float model answer the evaluation samples, which were checked to fit: all others are compared with it."""
    work.float_answers = answers_of(work.normal, work.path("evaluation.npz"))


def make_trials(work: Work, wanted: Sequence[VariantName]) -> list[Trial]:
    """Return every variant that was tried, float32 first, of a model that was checked."""
    normal = work.normal
    trials = [work.judge(Trial("float32", work.model, ("as given",), macs=work.macs))]
    schemes = [scheme for scheme in SCHEMES if scheme in wanted]
    if schemes:
        work.progress(f"quantizing to {', '.join(schemes)}", 0.1)
        trials += _quantized(work, normal, schemes)
    if "mixed" in wanted:
        work.progress("choosing a precision for each layer", 0.2)
        trials.append(_mixed(work, normal))
    if "int8-pruned" in wanted:
        trials += _pruned(work, normal)
    trained = [name for name in get_args(TrainedName) if name in wanted]
    if trained:
        from regatta_fleet.optimize.train.trials import make_trained  # it builds on this module

        trials += make_trained(work, trained)
    return trials


def _quantized(work: Work, normal: Path, schemes: Sequence[Scheme]) -> list[Trial]:
    """Return the variants of the whole model in one precision, made by one child: its start is half of the time."""
    paths: dict[str, Path] = {scheme: work.path(f"{scheme}.tflite") for scheme in schemes}
    outputs = {scheme: str(paths[scheme]) for scheme in schemes}
    try:
        made = run_step(Quantize(model=str(normal), samples=str(work.path("tuning.npz")), outputs=outputs)).made
    except Rejected as err:
        made = tuple(Made(scheme=scheme, notes=(SCHEMES[scheme].words,), reason=str(err)) for scheme in schemes)
    return [work.judge_made(Trial(one.scheme, paths[one.scheme], one.notes, macs=work.macs), one) for one in made]


def _mixed(work: Work, normal: Path) -> Trial:
    path = work.path("mixed.tflite")
    step = Search(
        model=str(normal),
        samples=str(work.path("tuning.npz")),
        output=str(path),
        max_drop=work.policy.max_accuracy_drop,
    )
    try:
        made = run_step(step, timeout_s=_SEARCH_S).made[0]
    except Rejected as err:
        made = Made(scheme="mixed", notes=("precision by layer",), reason=str(err))
    return work.judge_made(Trial("mixed", path, made.notes, macs=work.macs), made)


def split_off(work: Work) -> tuple[Path, Path] | tuple[None, None]:
    """Write the tuning samples to fit on, and those held back to judge by; None when there are too few."""
    rest = np.arange(len(work.tuning)) % _HELD_BACK == _HELD_BACK - 1
    if not rest.any():
        return None, None
    fit, held_back = work.path("fit.npz"), work.path("held-back.npz")
    write_samples(fit, work.tuning.chosen(~rest))
    write_samples(held_back, work.tuning.chosen(rest))
    return fit, held_back


def _pruned(work: Work, normal: Path) -> list[Trial]:
    """Return int8-pruned at the greatest share of filters that keeps the accuracy, after those that did not."""
    fit, held_back = split_off(work)
    if fit is None or held_back is None:
        return []
    trials: list[Trial] = []
    left: tuple[float, ...] = PRUNING_SHARES
    while left:
        work.progress(f"pruning up to {100 * left[0]:g} % of the filters", 0.55 - 0.3 * len(left) / len(PRUNING_SHARES))
        path = work.path(f"pruned-{len(left)}.tflite")
        step = Prune(
            model=str(normal),
            samples=str(fit),
            held_back=str(held_back),
            output=str(path),
            shares=left,
            max_drop=work.policy.max_accuracy_drop,
        )
        try:
            attempts = run_step(step).attempts
        except Rejected as err:
            return [*trials, Trial("int8-pruned", normal, ("filters pruned",), refused=str(err))]
        for attempt in attempts:
            steps = (
                f"{100 * attempt.share:g} % of the filters, or as much work, pruned by reconstruction",
                *attempt.notes,
            )
            trial = Trial("int8-pruned", path, steps, macs=attempt.cost.macs)
            if attempt.reason is None:
                trials.append(quantize_pruned(work, trial))
            else:
                trials.append(replace(trial, refused=f"on samples held back from tuning, {attempt.reason}"))
        if trials[-1].refused is None:
            break
        left = left[len(attempts) :]
    return trials


def quantize_pruned(work: Work, pruned: Trial) -> Trial:
    """Return int8 of a pruned float model, judged."""
    path = pruned.path.with_name(f"{pruned.path.stem}-int8.tflite")
    step = Quantize(model=str(pruned.path), samples=str(work.path("tuning.npz")), outputs={"int8": str(path)})
    try:
        made = run_step(step).made[0]
    except Rejected as err:
        made = Made(scheme="int8", reason=str(err))
    return work.judge_made(replace(pruned, path=path, steps=(*pruned.steps, *made.notes)), made)
