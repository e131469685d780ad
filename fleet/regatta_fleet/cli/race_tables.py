"""Races as tables: every candidate with its figures, and why it lost. Pure: reports in, tables out."""

from __future__ import annotations

from regatta_fleet import figures, verdicts
from regatta_fleet.cli.output import Cell, Column, Style, Table
from regatta_fleet.schemas import DeviceDetail
from regatta_protocol.measurement import Outcome, RaceReport
from regatta_runtimes.choice.report import ranked

__all__ = ["race", "races"]


def race(report: RaceReport) -> Table:
    """Return every candidate with its figures and why it lost."""
    rows = []
    for result in ranked(report):
        placed = result.id == report.placement
        style: Style = "good" if placed else "" if result.outcome in (Outcome.MEASURED, Outcome.DROPPED) else "dim"
        rows.append(
            (
                Cell(result.id, style),
                figures.latency(result.latency.p50_us if result.latency else None),
                figures.latency(result.latency.p99_us if result.latency else None),
                figures.latency(result.first_us),
                figures.accuracy(result.accuracy, interval=False),
                figures.lost(result.accuracy_drop),
                figures.energy(result.power) if result.power.method != "none" else "unknown",
                figures.size(result.peak_rss_bytes),
                Cell(verdicts.candidate_verdict(result, report), style),
            )
        )
    return Table(
        (
            Column("CANDIDATE"),
            Column("P50", right=True),
            Column("P99", right=True),
            Column("FIRST", right=True, leave_out=2),
            Column("ACCURACY", right=True),
            Column("LOST", right=True),
            Column("ENERGY", right=True, leave_out=3),
            Column("MEMORY", right=True, leave_out=1),
            Column("VERDICT", wide=True),
        ),
        tuple(rows),
        title=f"Race of {report.model}:{report.version} ({verdicts.race_took(report)}, by {report.objective})",
        empty="no candidates",
        notes=(report.reason, *verdicts.front(report)),
    )


def races(device: DeviceDetail) -> tuple[Table, ...]:
    """Return the newest race of each version on the device."""
    newest: dict[tuple[str, int], RaceReport] = {}
    for report in device.races:
        newest.setdefault((report.model, report.version), report)
    return tuple(race(report) for report in newest.values())
