"""Batch jobs as tables: how each stands, on which device, and what came of it. Pure: schemas in, tables out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from regatta_fleet import figures
from regatta_fleet.cli.output import Cell, Column, Style, Table
from regatta_fleet.schemas import BatchDetail
from regatta_protocol.batch import BatchState, BatchSummary

__all__ = ["batch_devices", "batch_summary", "batches"]

_BATCH_STYLES: dict[BatchState, Style] = {
    BatchState.DONE: "good",
    BatchState.FAILED: "bad",
    BatchState.CANCELLED: "dim",
}


def batches(found: Iterable[BatchDetail]) -> Table:
    """Return batches, a line each: on how many devices it stands how."""
    rows = []
    for one in found:
        states = Counter(str(device.state) for device in one.devices)
        stands = ", ".join(f"{number} {state}" for state, number in states.items())
        rows.append((one.id, one.model, figures.clock(one.created_at), stands, one.input))
    return Table(
        (
            Column("BATCH"),
            Column("MODEL"),
            Column("STARTED", leave_out=1),
            Column("DEVICES"),
            Column("INPUT", wide=True),
        ),
        tuple(rows),
        empty="no batch was started: `regatta batch start MODEL --on DEVICE --input PATH` starts one",
    )


def batch_devices(detail: BatchDetail) -> Table:
    """Return how a batch stands on each device, and the pulling of its output, with the reason."""
    rows = tuple(
        (
            str(one.device),
            Cell(str(one.state), _BATCH_STYLES.get(one.state, "")),
            figures.count(one.records) + ("" if one.total is None else f" of {figures.count(one.total)}"),
            figures.NOTHING if one.results is None else str(one.results.state),
            one.reason or (one.results.reason if one.results is not None else None) or "",
        )
        for one in detail.devices
    )
    columns = (
        Column("DEVICE"),
        Column("STATE"),
        Column("RECORDS", right=True),
        Column("RESULTS", leave_out=1),
        Column("REASON", wide=True),
    )
    return Table(columns, rows)


def batch_summary(device: str, summary: BatchSummary) -> Table:
    """Return what came of a batch on one device."""
    latencies = (summary.p50_us, summary.p90_us, summary.p99_us)
    rows = [
        ("refused", figures.count(summary.refused)),
        ("a second", figures.count(round(summary.per_second))),
        ("p50, p90, p99", ", ".join(figures.latency(one) for one in latencies)),
        ("size", figures.size(summary.output_bytes)),
    ]
    if summary.mean_score is not None:
        rows.append(("mean score", f"{summary.mean_score:.4g}"))
    rows += [(f"class {label}", figures.count(number)) for label, number in summary.classes.items()]
    if summary.other_classes:
        rows.append(("other classes", figures.count(summary.other_classes)))
    return Table((Column("SUMMARY"), Column("", right=True)), tuple(rows), title=f"{device}:")
