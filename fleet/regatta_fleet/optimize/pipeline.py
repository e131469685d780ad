"""From a trained float model to a bundle of measured variants: the story of `regatta model optimize`.

    check -> int8 -> prune, refit, int8 -> golden samples -> measure -> recommend -> bundle and report

Variants that lose more accuracy than the policy allows are refused and stay in the report with the reason. The samples
for tuning (ranges, refits, how much to prune) are never those for evaluation. Nothing is written to the output folder
until all is done.
"""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from regatta_fleet.bundle import (
    BundleSource,
    check_place,
    file_ref,
    golden_count,
    guess_image,
    read_labels,
    write_bundle,
)
from regatta_fleet.labels import labels_text
from regatta_fleet.optimize.compare import Comparison, compare, refusal
from regatta_fleet.optimize.evaluate import answers_of, measure_variant
from regatta_fleet.optimize.report import OptimizeReport, VariantReport, markdown
from regatta_fleet.optimize.samples import (
    Samples,
    check_labels,
    check_shape,
    read_samples,
    split_samples,
    write_samples,
)
from regatta_fleet.optimize.steps import Check, Prune, Quantize, run_step
from regatta_fleet.schemas import BundleDraft
from regatta_protocol.durable import write_durably
from regatta_protocol.errors import Rejected
from regatta_protocol.ids import Digest
from regatta_protocol.manifest import FileRef, Policy, Variant
from regatta_protocol.measurement import Accuracy, CandidateResult
from regatta_runtimes.golden import write_golden
from regatta_runtimes.inspect import ModelFacts, inspect_model

__all__ = ["PRUNING_SHARES", "optimize"]

Floats = npt.NDArray[np.float32]
Progress = Callable[[str, float], None]

# Tried from the greatest. Beyond, only training keeps accuracy; KWS (.932) keeps .904 at a quarter, .76 at a half.
PRUNING_SHARES = (0.75, 0.625, 0.5, 0.375, 0.25, 0.125)
_HELD_BACK = 3  # every third tuning sample judges how much to prune and is not refitted on


@dataclass(frozen=True)
class _Trial:
    """A variant that was made, with how it stands beside float."""

    name: str
    path: Path
    steps: tuple[str, ...]
    comparison: Comparison
    macs: int | None
    refused: str | None = None


@dataclass
class _Work:
    """What one optimization has at hand."""

    folder: Path
    model: Path
    tuning: Samples
    evaluation: Samples
    policy: Policy
    progress: Progress
    float_answers: Floats = field(default_factory=lambda: np.zeros((0, 1), np.float32))

    def path(self, name: str) -> Path:
        """Return a path in the scratch folder."""
        return self.folder / name

    def judge(self, name: str, path: Path, steps: tuple[str, ...], macs: int | None) -> _Trial:
        """Return the variant with its answers compared, refused where they are too bad."""
        answers = answers_of(path, self.path("evaluation.npz"))
        comparison = compare(answers, self.float_answers, self.evaluation.y)
        return _Trial(name, path, steps, comparison, macs, refusal(comparison, self.policy.max_accuracy_drop))


def optimize(
    model: Path,
    data: Path,
    output: Path,
    source: BundleSource | None = None,
    *,
    progress: Progress = lambda message, share: None,
    replace: bool = False,
) -> OptimizeReport:
    """Make float32, int8 and int8-pruned variants of a float .tflite, and write their bundle and report to `output`.

    Args:
        data: `.npz` with `x`, optionally `y`, `scale`, `zero_point`. Half tunes and half evaluates, unless `source`
            names an evaluation set.
        source: labels, evaluation set, how pictures are read, and the policy with the accuracy budget.
        progress: told each step and the share that is done, in [0, 1].
        replace: put the bundle in place of one that is there.

    Raises:
        Rejected: when the model or the samples cannot be used; the text names tensor, operator or array.
        Misuse: when the [optimize] extra is not installed.
    """
    begun = time.monotonic()
    source = source or BundleSource()
    check_place(output, replace)
    progress(f"reading {model.name} and its samples", 0.0)
    tuning, evaluation = _samples(data, source.evaluation)
    facts = inspect_model(model)
    classes = facts.outputs[0].shape[-1] if facts.outputs[0].shape else 0
    for samples, path in ((tuning, data), (evaluation, source.evaluation or data)):
        check_shape(samples, facts.inputs[0].shape, path.name)
        check_labels(samples, classes, path.name)
    labels = None if source.labels is None else read_labels(source.labels, classes)
    with tempfile.TemporaryDirectory(prefix="regatta-optimize-") as scratch:
        work = _Work(Path(scratch), model, tuning, evaluation, source.policy, progress)
        trials = _make_variants(work)
        accepted = [trial for trial in trials if trial.refused is None]
        progress("computing golden samples with reference kernels", 0.6)
        golden = work.path("golden.npz")
        files = {trial.name: trial.path for trial in accepted}
        count = golden_count(facts.inputs)
        write_golden(files, golden, samples=work.path("evaluation.npz"), count=count)
        runs: dict[str, tuple[CandidateResult, ...]] = {}
        for place, trial in enumerate(accepted):
            progress(f"measuring {trial.name}", 0.65 + 0.3 * place / len(accepted))
            runs[trial.name] = measure_variant(trial.name, trial.path, golden)
        reports = [_reported(trial, runs.get(trial.name, ()), trial.refused) for trial in trials]
        reports.sort(key=lambda report: not report.accepted)
        best, why = _recommend(reports, source.policy)
        report = OptimizeReport(
            source=model.name,
            source_digest=file_ref(model).digest,
            bundle=str(output),
            variants=tuple(reports),
            recommended=best.name,
            why=why,
            tuning_samples=len(tuning),
            evaluation_samples=len(evaluation),
            labelled=evaluation.y is not None,
            max_accuracy_drop=source.policy.max_accuracy_drop,
            duration_s=round(time.monotonic() - begun, 2),
            machine=f"{platform.machine()}, {platform.system()}",
        )
        progress("writing the bundle", 0.95)
        kept = [
            (trial, entry) for trial in accepted for entry in reports if entry.accepted and entry.name == trial.name
        ]
        _write(work, source, facts, kept, labels, report, output, replace)
    progress(f"bundle in {output}", 1.0)
    return report


def _make_variants(work: _Work) -> list[_Trial]:
    """Return every variant that was tried, float32 first."""
    write_samples(work.path("tuning.npz"), work.tuning)
    write_samples(work.path("evaluation.npz"), work.evaluation)
    normal = work.path("normal.tflite")
    work.progress("checking the float model", 0.05)
    checked = run_step(Check(model=str(work.model), samples=str(work.path("tuning.npz")), output=str(normal)))
    macs = None if checked.cost is None else checked.cost.macs
    work.float_answers = answers_of(normal, work.path("evaluation.npz"))
    trials = [work.judge("float32", work.model, ("as given",), macs)]

    work.progress("quantizing to int8", 0.15)
    trials.append(_quantized(work, "int8", normal, (), macs))
    trials += _pruned(work, normal)
    return trials


def _quantized(work: _Work, name: str, model: Path, steps: tuple[str, ...], macs: int | None) -> _Trial:
    path = work.path(f"{model.stem}-int8.tflite")
    try:
        result = run_step(Quantize(model=str(model), samples=str(work.path("tuning.npz")), output=str(path)))
        return work.judge(name, path, (*steps, *result.notes), macs)
    except Rejected as err:
        return _Trial(name, model, (*steps, "static int8"), Comparison(len(work.evaluation), 0.0), macs, str(err))


def _pruned(work: _Work, normal: Path) -> list[_Trial]:
    """Return int8-pruned at the greatest share of filters that keeps the accuracy, after those that did not."""
    rest = np.arange(len(work.tuning)) % _HELD_BACK == _HELD_BACK - 1
    if not rest.any():
        return []
    write_samples(work.path("fit.npz"), work.tuning.chosen(~rest))
    held_back = work.tuning.chosen(rest)
    write_samples(work.path("held-back.npz"), held_back)
    trials: list[_Trial] = []
    left: tuple[float, ...] = PRUNING_SHARES
    while left:
        work.progress(f"pruning up to {100 * left[0]:g} % of the filters", 0.55 - 0.3 * len(left) / len(PRUNING_SHARES))
        path = work.path(f"pruned-{len(left)}.tflite")
        step = Prune(
            model=str(normal),
            samples=str(work.path("fit.npz")),
            held_back=str(work.path("held-back.npz")),
            output=str(path),
            shares=left,
            max_drop=work.policy.max_accuracy_drop,
        )
        try:
            attempts = run_step(step).attempts
        except Rejected as err:
            unknown = Comparison(len(held_back), 0.0)
            return [*trials, _Trial("int8-pruned", normal, ("filters pruned",), unknown, None, str(err))]
        for attempt in attempts:
            steps = (f"{100 * attempt.share:g} % of the filters pruned by reconstruction", *attempt.notes)
            if attempt.reason is None:
                trials.append(_quantized(work, "int8-pruned", path, steps, attempt.cost.macs))
            else:
                reason = f"on samples held back from tuning, {attempt.reason}"
                unknown = Comparison(len(held_back), 0.0)
                trials.append(_Trial("int8-pruned", normal, steps, unknown, attempt.cost.macs, reason))
        if trials[-1].refused is None:
            break
        left = left[len(attempts) :]
    return trials


def _samples(data: Path, evaluation: Path | None) -> tuple[Samples, Samples]:
    given = read_samples(data)
    if evaluation is None:
        return split_samples(given)
    return given, read_samples(evaluation)


def _reported(trial: _Trial, runs: tuple[CandidateResult, ...], refused: str | None) -> VariantReport:
    """Return the variant's report; one that no runtime here runs is refused after all."""
    latency = next((run.latency for run in runs if run.latency is not None), None)
    if refused is None and latency is None:
        refused = "no runtime here runs it: " + "; ".join(f"{run.runtime}: {run.reason}" for run in runs)
    found = trial.comparison
    judged = refused is None or found.correct is not None
    return VariantReport(
        name=trial.name,
        accepted=refused is None,
        reason=refused,
        steps=trial.steps,
        size_bytes=trial.path.stat().st_size if judged else None,
        accuracy=None if found.correct is None else Accuracy(correct=found.correct, total=found.samples),
        lost=found.lost,
        gained=found.gained,
        p_value=None if found.p_value is None else round(found.p_value, 4),
        snr_db=round(found.snr_db, 2) if judged else None,
        latency=latency,
        macs=trial.macs,
        runs=runs,
    )


def _recommend(reports: list[VariantReport], policy: Policy) -> tuple[VariantReport, str]:
    """Return the variant that this machine's figures speak for, and why; devices race for themselves."""
    fit = [report for report in reports if report.accepted]
    if not fit or fit[0].name != "float32":
        raise Rejected(f"the float model itself cannot be used: {reports[0].reason or reports[-1].reason}")
    p99 = policy.objective == "latency_p99"

    def figure(report: VariantReport) -> float:
        assert report.latency is not None  # accepted variants were measured
        return report.latency.p99_us if p99 else report.latency.p50_us

    best = min(fit, key=lambda report: (figure(report), report.size_bytes))
    name = "p99" if p99 else "p50"
    return best, f"{name} {figure(best):.1f} µs beside {figure(fit[0]):.1f} µs in float, within the accuracy budget"


def _write(
    work: _Work,
    source: BundleSource,
    facts: ModelFacts,
    kept: list[tuple[_Trial, VariantReport]],
    labels: tuple[str, ...] | None,
    report: OptimizeReport,
    output: Path,
    replace: bool,
) -> None:
    """Write the bundle with the report beside the draft."""
    files: dict[Digest, Path] = {}
    extra = {"golden": work.path("golden.npz")}
    if work.evaluation.y is not None:
        extra["evaluation"] = work.path("evaluation.npz")
    if labels is not None:
        extra["labels"] = work.path("labels.txt")
        write_durably(extra["labels"], labels_text(labels), mode=0o644)
    refs = {name: file_ref(path) for name, path in extra.items()}
    files.update({refs[name].digest: path for name, path in extra.items()})
    variants = []
    for trial, entry in kept:
        ref = file_ref(trial.path)
        files[ref.digest] = trial.path
        variants.append(_variant(trial, entry, ref, inspect_model(trial.path)))
    draft = BundleDraft(
        task="classification" if labels is not None or work.evaluation.y is not None else "other",
        variants=tuple(variants),
        golden=refs["golden"],
        evaluation=refs.get("evaluation"),
        labels=refs.get("labels"),
        input=guess_image(facts, mean=source.mean, scale=source.scale),
        policy=source.policy,
        source=report.source,
        lineage=(f"{report.source} ({report.source_digest[:12]})", f"optimized, {len(variants)} variants"),
    )
    reports = {"report.json": report.model_dump_json(indent=2).encode(), "report.md": markdown(report).encode()}
    write_bundle(output, draft, files, reports=reports, replace=replace)


def _variant(trial: _Trial, entry: VariantReport, ref: FileRef, facts: ModelFacts) -> Variant:
    setting = next((run.id for run in entry.runs if run.latency is not None), None)
    return Variant(
        name=trial.name,
        file=ref,
        precision=facts.precision,
        inputs=facts.inputs,
        outputs=facts.outputs,
        requires=facts.requires,
        steps=trial.steps,
        accuracy=entry.accuracy,
        latency=entry.latency,
        latency_setting=None if setting is None else f"{setting} where it was optimized",
    )
