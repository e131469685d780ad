"""A race as people read it: the candidates in order, the outcomes in words, and the document that programs read.

Every table, page and file that shows a race asks here. Pure.
"""

from __future__ import annotations

from typing import Any

from regatta_protocol.measurement import CandidateResult, Outcome, RaceReport

__all__ = ["OUTCOME_WORDS", "race_document", "ranked", "words_of"]

OUTCOME_WORDS = {
    Outcome.MEASURED: "measured",
    Outcome.UNAVAILABLE: "not on this board",
    Outcome.CREATE_FAILED: "could not be set up",
    Outcome.PREPARE_FAILED: "could not be prepared",
    Outcome.INVOKE_FAILED: "failed to run",
    Outcome.CRASHED: "crashed",
    Outcome.HUNG: "hung",
    Outcome.OUT_OF_MEMORY: "ran out of memory",
    Outcome.NO_OP: "its delegate took no part of the model",
    Outcome.CPU_FALLBACK: "computed on the processor instead",
    Outcome.LEAKING: "leaks memory",
    Outcome.WRONG_OUTPUT: "wrong outputs",
    Outcome.INACCURATE: "loses too much accuracy",
    Outcome.DROPPED: "dropped early",
    Outcome.QUARANTINED: "in quarantine",
}


def words_of(outcome: Outcome) -> str:
    """Return the outcome in words; one that only a newer program knows by its name."""
    return OUTCOME_WORDS.get(outcome, outcome.replace("_", " "))


def ranked(report: RaceReport) -> list[CandidateResult]:
    """Return the placement first, then those measured, then the dropped, each by p50, then the failed by id."""

    def key(result: CandidateResult) -> tuple[bool, bool, bool, float, str]:
        p50_us = result.latency.p50_us if result.latency is not None else float("inf")
        measured = result.outcome == Outcome.MEASURED
        return result.id != report.placement, not measured, result.latency is None, p50_us, result.id

    return sorted(report.candidates, key=key)


def race_document(report: RaceReport) -> dict[str, Any]:
    """Return the whole report as JSON values, best candidate first, with p50_us and p99_us on each candidate.

    Both are null for a candidate that was never timed; its `reason` says why. `placement` is null when there is none.
    """
    document: dict[str, Any] = report.model_dump(mode="json")
    document["candidates"] = [
        {
            "id": result.id,
            "p50_us": None if result.latency is None else result.latency.p50_us,
            "p99_us": None if result.latency is None else result.latency.p99_us,
            **result.model_dump(mode="json", exclude={"id"}),
        }
        for result in ranked(report)
    ]
    return document
