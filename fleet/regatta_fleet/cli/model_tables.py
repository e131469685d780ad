"""Models as tables: their versions, the variants of one, and how those were made. Pure: schemas in, tables out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from regatta_fleet import figures
from regatta_fleet.cli.output import Cell, Column, Style, Table
from regatta_fleet.schemas import BundleDraft, ModelSummary
from regatta_protocol.manifest import Manifest

if TYPE_CHECKING:
    from regatta_fleet.optimize.report import OptimizeReport, VariantReport

__all__ = ["lineage", "models", "optimized", "variants"]

_SHORT = 12  # characters of a digest


def models(found: Iterable[ModelSummary]) -> Table:
    """Return each model with its versions."""
    rows = tuple(
        (model.name, ", ".join(str(version) for version in model.versions), figures.count(model.devices_serving))
        for model in found
    )
    return Table(
        (Column("MODEL"), Column("VERSIONS"), Column("DEVICES SERVING", right=True)),
        rows,
        empty="no models yet: `regatta model push MODEL.tflite --name NAME` stores one",
    )


def variants(manifest: Manifest | BundleDraft) -> Table:
    """Return each variant with its size, accuracy, latency and what it costs or gains against the first."""
    first = manifest.variants[0]
    rows = []
    for variant in manifest.variants:
        faster = (
            first.latency.p50_us / variant.latency.p50_us
            if first.latency and variant.latency and variant.latency.p50_us > 0
            else None
        )
        smaller = first.file.size_bytes / variant.file.size_bytes if variant.file.size_bytes else None
        rows.append(
            (
                variant.name,
                variant.precision,
                figures.size(variant.file.size_bytes),
                figures.ratio(smaller),
                figures.accuracy(variant.accuracy),
                figures.latency(variant.latency.p50_us if variant.latency else None),
                figures.ratio(faster),
                ", ".join(variant.requires) or figures.NOTHING,
                " → ".join(variant.steps) or figures.NOTHING,
            )
        )
    return Table(
        (
            Column("VARIANT"),
            Column("PRECISION", leave_out=1),
            Column("SIZE", right=True),
            Column("SMALLER", right=True),
            Column("ACCURACY", right=True),
            Column("P50", right=True),
            Column("FASTER", right=True),
            Column("REQUIRES", leave_out=2),
            Column("MADE BY", wide=True),
        ),
        tuple(rows),
        title="Variants",
        notes=(f"smaller and faster: than {first.name}, on the machine that made them",) if len(rows) > 1 else (),
    )


def optimized(report: OptimizeReport) -> Table:
    """Return each variant with its figures and how many times those of the float original they are."""
    original = report.variants[0]
    rows = []
    for variant in report.variants:
        latency_ratio = (
            variant.latency.p50_us / original.latency.p50_us
            if variant.latency and original.latency and original.latency.p50_us > 0
            else None
        )
        size_ratio = variant.size_bytes / original.size_bytes if variant.size_bytes and original.size_bytes else None
        recommended = variant.name == report.recommended and variant.accepted
        verdict = "recommended" if recommended else variant.reason or ("kept" if variant.accepted else "refused")
        style: Style = "good" if recommended else "" if variant.accepted else "dim"
        rows.append(
            (
                Cell(variant.name, style),
                figures.size(variant.size_bytes),
                figures.ratio(size_ratio),
                _accuracy_cell(variant),
                figures.latency(variant.latency.p50_us if variant.latency else None),
                figures.ratio(latency_ratio),
                Cell(verdict, style),
            )
        )
    return Table(
        (
            Column("VARIANT"),
            Column("SIZE", right=True),
            Column("OF FLOAT", right=True),
            Column("ACCURACY", right=True),
            Column("P50", right=True),
            Column("OF FLOAT", right=True),
            Column("VERDICT", wide=True),
        ),
        tuple(rows),
        title=f"{report.source}, optimized in {report.duration_s:.1f} s",
        notes=(f"{report.recommended}: {report.why}", f"bundle and report in {report.bundle}"),
    )


def lineage(manifest: Manifest | BundleDraft) -> Table:
    """Return the steps that made the version: what went in and what came out, by the beginning of digests."""
    rows = []
    for number, step in enumerate(manifest.history, start=1):
        inputs = ", ".join(f"{name} {digest[:_SHORT]}" for name, digest in step.inputs.items())
        outputs = ", ".join(f"{name} {digest[:_SHORT]}" for name, digest in step.outputs.items())
        rows.append((str(number), step.step, inputs, outputs or "nothing", "; ".join(step.words)))
    seeds = sorted({step.seed for step in manifest.history})
    tools = sorted({f"{name} {version}" for step in manifest.history for name, version in step.tools.items()})
    return Table(
        (
            Column("STEP", right=True),
            Column("WHAT"),
            Column("OF", leave_out=2),
            Column("MADE", leave_out=1),
            Column("HOW", wide=True),
        ),
        tuple(rows),
        title="Lineage",
        notes=(f"seed {', '.join(map(str, seeds))}; {', '.join(tools) or 'no tools'}",),
    )


def _accuracy_cell(variant: VariantReport) -> str:
    return figures.accuracy(variant.accuracy) if variant.score is None else f"{100 * variant.score:.2f} % (hook)"
