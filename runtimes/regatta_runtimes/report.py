"""A race's candidates in the order in which a person reads them, for every table and page that shows a race."""

from __future__ import annotations

from regatta_protocol.measurement import CandidateResult, Outcome, RaceReport

__all__ = ["ranked"]


def ranked(report: RaceReport) -> list[CandidateResult]:
    """Return the placement first, then those measured, then the dropped, each by p50, then the failed by id."""

    def key(result: CandidateResult) -> tuple[bool, bool, bool, float, str]:
        p50_us = result.latency.p50_us if result.latency is not None else float("inf")
        measured = result.outcome == Outcome.MEASURED
        return result.id != report.placement, not measured, result.latency is None, p50_us, result.id

    return sorted(report.candidates, key=key)
