"""What an optimization found, for people (Markdown) and programs (JSON). Pure."""

from __future__ import annotations

from pydantic import Field

from regatta_protocol.manifest import LineageStep
from regatta_protocol.measurement import CandidateResult
from regatta_protocol.values import Accuracy, Latency
from regatta_protocol.wire import Wire

__all__ = ["LayerReport", "OptimizeReport", "VariantReport", "markdown"]


class LayerReport(Wire):
    """A layer's precision in a variant, and the output's SNR when this layer alone is quantized; None: not asked."""

    name: str
    kind: str
    weights: int
    precision: str
    int8_snr_db: float | None = None
    int4_snr_db: float | None = None


class VariantReport(Wire):
    """A variant with its figures beside the float original's; refused ones say why."""

    name: str
    accepted: bool
    reason: str | None = None  # why it was refused
    steps: tuple[str, ...]
    size_bytes: int | None = None  # None for one that was refused before it was quantized
    accuracy: Accuracy | None = None  # on the evaluation samples
    score: float | None = None  # by the user's own metric (the hook evaluate), which then decides
    lost: int | None = None  # answers right in float and wrong here
    gained: int | None = None
    p_value: float | None = None  # McNemar's exact test of lost against gained
    snr_db: float | None = None  # of output 0 against float's
    latency: Latency | None = None
    macs: int | None = None
    runs: tuple[CandidateResult, ...] = ()  # in each runtime that this machine has
    requires: str | None = None  # the delegate without which it does not run: measured on devices only
    layers: tuple[LayerReport, ...] = ()  # those with weights, where quantization chose for them


class OptimizeReport(Wire):
    """An optimization from one float model."""

    schema_version: int = 1
    source: str
    source_digest: str
    bundle: str  # the folder
    variants: tuple[VariantReport, ...] = Field(min_length=1)  # float32 first; refused ones last
    recommended: str
    why: str
    tuning_samples: int
    evaluation_samples: int
    labelled: bool
    max_accuracy_drop: float
    duration_s: float
    machine: str
    recipe: str | None = None  # what was followed, in words
    history: tuple[LineageStep, ...] = ()
    plots: tuple[str, ...] = ()  # files beside the report

    def variant(self, name: str) -> VariantReport:
        """Return an accepted variant by its name."""
        return next(variant for variant in self.variants if variant.name == name and variant.accepted)


def markdown(report: OptimizeReport) -> str:
    """Return the report as a page."""
    original = report.variants[0]
    lines = [
        f"# {report.source}, optimized",
        "",
        f"Recommended: **{report.recommended}**: {report.why}.",
        "",
        f"Tuned on {report.tuning_samples} samples, evaluated on {report.evaluation_samples} others"
        f"{'' if report.labelled else ' without labels'}; latency is of one thread on {report.machine} "
        f"({_setting(original)}). Budget: {100 * report.max_accuracy_drop:g} points of accuracy. "
        f"It took {report.duration_s:.1f} s.",
        "",
        "| variant | size | of float | accuracy | lost / gained | output SNR | p50 | of float | MACs |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    accepted = [variant for variant in report.variants if variant.accepted]
    refused = [variant for variant in report.variants if not variant.accepted]
    lines += [_row(variant, original) for variant in accepted]
    lines += ["", "How they were made:", ""]
    lines += [f"- {variant.name}: {'; '.join(variant.steps)}" for variant in accepted]
    lines += [line for variant in accepted if _is_mixed(variant) for line in _layer_table(variant)]
    failing = [
        f"- {variant.name} in {run.runtime}: {run.outcome}, {run.reason}"
        for variant in accepted
        for run in variant.runs
        if run.reason is not None
    ]
    if failing:
        lines += ["", "Not everywhere:", "", *failing]
    if refused:
        lines += ["", "Refused:", ""]
        lines += [f"- {variant.name} ({'; '.join(variant.steps)}): {variant.reason}" for variant in refused]
    lines += _lineage(report)
    for name in report.plots:
        lines += ["", f"![accuracy against size and latency]({name})"]
    return "\n".join(lines) + "\n"


def _lineage(report: OptimizeReport) -> list[str]:
    if not report.history:
        return []
    lines = [
        "",
        f"Lineage, by {report.recipe}:",
        "",
        "| step | key | parameters | tools | files |",
        "|---|---|---|---|---|",
    ]
    for step in report.history:
        tools = ", ".join(f"{name} {version}" for name, version in step.tools.items())
        files = ", ".join(f"{name} {digest[:12]}" for name, digest in step.outputs.items())
        lines.append(f"| {step.step} | {step.key[:12]} | `{step.parameters.replace('|', '/')}` | {tools} | {files} |")
    return lines


def _row(variant: VariantReport, original: VariantReport) -> str:
    accuracy = "unknown" if variant.accuracy is None else f"{variant.accuracy.value:.4f}"
    if variant.score is not None:
        accuracy = f"{variant.score:.4f} (hook)"
    changed = "–" if variant.lost is None or variant is original else f"{variant.lost} / {variant.gained}"
    noise = "–" if variant.snr_db is None or variant is original else f"{variant.snr_db:.1f} dB"
    p50 = ratio = "unknown"
    if variant.latency is not None:
        p50 = f"{variant.latency.p50_us:.1f} µs"
        if original.latency is not None and original.latency.p50_us > 0:
            ratio = f"{variant.latency.p50_us / original.latency.p50_us:.2f}"
    size = share = "unknown"
    if variant.size_bytes is not None and original.size_bytes:
        size, share = f"{variant.size_bytes:,}", f"{variant.size_bytes / original.size_bytes:.2f}"
    macs = "unknown" if variant.macs is None else f"{variant.macs:,}"
    cells = (variant.name, size, share, accuracy, changed, noise, p50, ratio, macs)
    return f"| {' | '.join(cells)} |"


def _is_mixed(variant: VariantReport) -> bool:
    return any(layer.int8_snr_db is not None or layer.int4_snr_db is not None for layer in variant.layers)


def _layer_table(variant: VariantReport) -> list[str]:
    lines = [
        "",
        f"Layers of {variant.name}; the output's SNR is with this layer alone quantized:",
        "",
        "| layer | operator | weights | precision | in int8 | in int4 |",
        "|---|---|--:|---|--:|--:|",
    ]
    for layer in variant.layers:
        noises = ["–" if found is None else f"{found:.1f} dB" for found in (layer.int8_snr_db, layer.int4_snr_db)]
        name = layer.name.replace("|", "\\|")
        lines.append(f"| {name} | {layer.kind} | {layer.weights:,} | {layer.precision} | {' | '.join(noises)} |")
    return lines


def _setting(original: VariantReport) -> str:
    measured = [run for run in original.runs if run.latency is not None]
    return f"{measured[0].runtime}, {measured[0].delegate}" if measured else "not measured"
