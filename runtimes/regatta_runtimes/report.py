"""A race's report in the order and words that a person reads: for `regatta-agent why` and the fleet's pages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from regatta_protocol.measurement import CandidateResult, Outcome, RaceReport

__all__ = ["Row", "ranked", "rows"]


@dataclass(frozen=True)
class Row:
    """One candidate as texts; a figure that is not known is a dash."""

    id: str
    outcome: str
    p50_us: str
    p99_us: str
    accuracy: str
    energy_mj: str
    reason: str


def ranked(report: RaceReport) -> list[CandidateResult]:
    """Return the placement first, then those measured, then the dropped, each by p50, then the failed by id."""

    def key(result: CandidateResult) -> tuple[bool, bool, bool, float, str]:
        p50_us = result.latency.p50_us if result.latency is not None else float("inf")
        measured = result.outcome == Outcome.MEASURED
        return result.id != report.placement, not measured, result.latency is None, p50_us, result.id

    return sorted(report.candidates, key=key)


def rows(report: RaceReport) -> Iterator[Row]:
    """Yield a row for each candidate, best first."""
    for result in ranked(report):
        energy = result.power.energy_per_inference_mj
        yield Row(
            id=result.id,
            outcome="placed" if result.id == report.placement else str(result.outcome),
            p50_us="–" if result.latency is None else f"{result.latency.p50_us:.1f}",
            p99_us="–" if result.latency is None else f"{result.latency.p99_us:.1f}",
            accuracy="–" if result.accuracy is None else f"{result.accuracy.value:.3f}",
            energy_mj="–" if energy is None else f"{energy:.3g}",
            reason=result.reason or "",
        )
