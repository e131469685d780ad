"""From a trained float model to a bundle of measured variants: the story of `regatta model optimize`.

    check -> quantize -> prune, refit, int8 -> golden samples -> measure -> recommend -> bundle and report

Which variants are made is chosen by name (`trials`), or by a recipe (`recipe.run`, through `Making`). Those that lose
more accuracy than the policy allows are refused and stay in the report with the reason. The samples for tuning (ranges,
refits, how much to prune, precision by layer) are never those for evaluation. Nothing is written to the output folder
until all is done.
"""

from __future__ import annotations

import dataclasses
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from regatta_fleet.models.bundle import check_place, file_ref, write_bundle
from regatta_fleet.models.bundle_source import BundleSource, check_given, golden_count, input_image, read_labels
from regatta_fleet.models.labels import labels_text
from regatta_fleet.optimize.evaluate import measure_variant
from regatta_fleet.optimize.plot import can_plot, plot_variants
from regatta_fleet.optimize.report import OptimizeReport, VariantReport, markdown
from regatta_fleet.optimize.samples import (
    Samples,
    check_labels,
    check_shape,
    read_samples,
    split_samples,
)
from regatta_fleet.optimize.trials import VARIANT_SETS, Trial, VariantName, Work, answer, check_model, make_trials
from regatta_fleet.schemas import BundleDraft
from regatta_protocol.durable import write_durably
from regatta_protocol.errors import Rejected
from regatta_protocol.ids import Digest
from regatta_protocol.manifest import FileRef, LineageStep, Policy, Variant
from regatta_protocol.measurement import CandidateResult
from regatta_protocol.processing import Processing, as_json
from regatta_protocol.values import Accuracy
from regatta_runtimes.worker.golden import write_golden
from regatta_runtimes.worker.inspect import ModelFacts, inspect_model

__all__ = ["Making", "optimize"]

Progress = Callable[[str, float], None]


@dataclasses.dataclass(frozen=True)
class Making:
    """How variants come about, where it is not by their names."""

    make: Callable[[Work], list[Trial]]  # of a model that was checked; float32 first
    history: Callable[[], tuple[LineageStep, ...]]  # after make
    source: str  # what the float model was made of
    words: str  # what is followed
    reports: Callable[[], Mapping[str, bytes]] = dict  # files beside the bundle's own report, after make


_ALIKE = 1.05  # p50 of one file on a quiet machine differs by some percent from run to run


def optimize(
    model: Path,
    data: Path,
    output: Path,
    source: BundleSource | None = None,
    *,
    variants: Sequence[VariantName] = VARIANT_SETS["standard"],
    making: Making | None = None,
    progress: Progress = lambda message, share: None,
    replace: bool = False,
) -> OptimizeReport:
    """Make variants of a float .tflite, and write their bundle with the original and a report to `output`.

    Args:
        data: `.npz` with `x`, optionally `y`, `scale`, `zero_point`. Half tunes and half evaluates, unless `source`
            names an evaluation set.
        source: labels, evaluation set, how pictures are read, and the policy with the accuracy budget.
        variants: those to make besides float32, which is always the first.
        making: makes them in place of `variants`.
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
    with tempfile.TemporaryDirectory(prefix="regatta-optimize-") as scratch:
        work = Work(Path(scratch), model, tuning, evaluation, source.policy, progress)
        progress("checking the float model", 0.05)
        check_model(work)
        facts = inspect_model(model)
        check_given(source.processing or Processing(), facts, "float32")
        classes = facts.outputs[0].shape[-1] if facts.outputs[0].shape else 0
        for samples, path in ((tuning, data), (evaluation, source.evaluation or data)):
            check_shape(samples, facts.inputs[0].shape, path.name)
            check_labels(samples, classes, path.name)
        answer(work)
        labels = None if source.labels is None else read_labels(source.labels, classes)
        trials = make_trials(work, variants) if making is None else making.make(work)
        accepted = [trial for trial in trials if trial.refused is None]
        runnable = [trial for trial in accepted if trial.requires is None]
        progress("computing golden samples with reference kernels", 0.6)
        golden = work.path("golden.npz")
        files = {trial.name: trial.path for trial in runnable}
        count = golden_count(facts.inputs)
        write_golden(files, golden, samples=work.path("evaluation.npz"), count=count)
        runs: dict[str, tuple[CandidateResult, ...]] = {}
        for place, trial in enumerate(runnable):
            progress(f"measuring {trial.name}", 0.65 + 0.3 * place / len(runnable))
            runs[trial.name] = measure_variant(trial.name, trial.path, golden)
        reports = [_reported(trial, runs.get(trial.name, ()), trial.refused) for trial in trials]
        reports.sort(key=lambda report: not report.accepted)
        best, why = _recommend(reports, source.policy)
        report = OptimizeReport(
            source=model.name if making is None else making.source,
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
            recipe=None if making is None else making.words,
            history=() if making is None else making.history(),
        )
        progress("writing the bundle", 0.95)
        kept = [
            (trial, entry) for trial in accepted for entry in reports if entry.accepted and entry.name == trial.name
        ]
        beside = {} if making is None else dict(making.reports())
        if making is not None and can_plot():
            plots = plot_variants(report)
            report = report.model_copy(update={"plots": tuple(sorted(plots, reverse=True)[:1])})
            beside |= plots
        _write(work, source, facts, kept, labels, report, output, replace, beside)
    progress(f"bundle in {output}", 1.0)
    return report


def _samples(data: Path, evaluation: Path | None) -> tuple[Samples, Samples]:
    given = read_samples(data)
    if evaluation is None:
        return split_samples(given)
    return given, read_samples(evaluation)


def _reported(trial: Trial, runs: tuple[CandidateResult, ...], refused: str | None) -> VariantReport:
    """Return the variant's report; one that no runtime here runs is refused after all."""
    latency = next((run.latency for run in runs if run.latency is not None), None)
    if refused is None and latency is None and trial.requires is None:
        refused = "no runtime here runs it: " + "; ".join(f"{run.runtime}: {run.reason}" for run in runs)
    found = trial.comparison
    correct, p_value = (None, None) if found is None else (found.correct, found.p_value)
    return VariantReport(
        name=trial.name,
        accepted=refused is None,
        reason=refused,
        steps=trial.steps,
        size_bytes=trial.path.stat().st_size if found is not None or trial.requires is not None else None,
        accuracy=None if found is None or correct is None else Accuracy(correct=correct, total=found.samples),
        score=trial.score,
        lost=None if found is None else found.lost,
        gained=None if found is None else found.gained,
        p_value=None if p_value is None else round(p_value, 4),
        snr_db=None if found is None else round(found.snr_db, 2),
        latency=latency,
        macs=trial.macs,
        runs=runs,
        requires=trial.requires,
        layers=trial.layers,
    )


def _recommend(reports: list[VariantReport], policy: Policy) -> tuple[VariantReport, str]:
    """Return the variant that this machine's figures speak for, and why; devices race for themselves."""
    fit = [report for report in reports if report.accepted and report.latency is not None]
    if not fit or fit[0].name != "float32":
        raise Rejected(f"the float model itself cannot be used: {reports[0].reason or reports[-1].reason}")
    p99 = policy.objective == "latency_p99"

    def figure(report: VariantReport) -> float:
        assert report.latency is not None  # accepted variants were measured
        return report.latency.p99_us if p99 else report.latency.p50_us

    least = min(figure(report) for report in fit)
    near = [report for report in fit if figure(report) <= least * _ALIKE]
    best = min(near, key=lambda report: (report.size_bytes or 0, figure(report)))
    name = "p99" if p99 else "p50"
    why = f"{name} {figure(best):.1f} µs beside {figure(fit[0]):.1f} µs in float, within the accuracy budget"
    return best, why if len(near) == 1 else f"{why}, and the smallest of {len(near)} that are as fast"


def _write(
    work: Work,
    source: BundleSource,
    facts: ModelFacts,
    kept: list[tuple[Trial, VariantReport]],
    labels: tuple[str, ...] | None,
    report: OptimizeReport,
    output: Path,
    replace: bool,
    beside: Mapping[str, bytes],
) -> None:
    """Write the bundle with the reports beside the draft."""
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
        if trial.requires is None:
            variants.append(_variant(trial, entry, ref, inspect_model(trial.path)))
        else:
            variants.append(_elsewhere(trial, ref, facts))
    draft = BundleDraft(
        task="classification" if labels is not None or work.evaluation.y is not None else "other",
        variants=tuple(variants),
        golden=refs["golden"],
        evaluation=refs.get("evaluation"),
        labels=refs.get("labels"),
        input=as_json(input_image(source, facts)),
        audio=None if source.processing is None else as_json(source.processing.audio),
        result=None if source.processing is None else as_json(source.processing.result),
        policy=source.policy,
        source=report.source,
        lineage=(
            f"{report.source} ({report.source_digest[:12]})",
            f"{report.recipe or 'optimized'}, {len(variants)} variants",
        ),
        history=report.history,
    )
    reports = {"report.json": report.model_dump_json(indent=2).encode(), "report.md": markdown(report).encode()}
    write_bundle(output, draft, files, reports={**beside, **reports}, replace=replace)


def _variant(trial: Trial, entry: VariantReport, ref: FileRef, facts: ModelFacts) -> Variant:
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


def _elsewhere(trial: Trial, ref: FileRef, facts: ModelFacts) -> Variant:
    """Return a variant that only its accelerator runs; what no runtime here reads has the float model's interface."""
    assert trial.requires is not None
    try:
        found = inspect_model(trial.path)
    except Rejected:
        found = dataclasses.replace(facts, precision="int8")
    return Variant(
        name=trial.name,
        file=ref,
        precision=found.precision,
        inputs=found.inputs,
        outputs=found.outputs,
        requires=(trial.requires,),
        steps=trial.steps,
    )
