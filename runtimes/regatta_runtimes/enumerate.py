"""Which candidates a bundle has on this board, and why others cannot be: runtime × variant × delegate × threads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from regatta_protocol.measurement import BoardFacts, CandidateResult, Outcome
from regatta_runtimes.candidate import Candidate
from regatta_runtimes.delegates import explain_absence

__all__ = ["CPU_DELEGATES", "Entrant", "default_threads", "enumerate_candidates", "unavailable"]

CPU_DELEGATES = ("xnnpack", "none")


@dataclass(frozen=True)
class Entrant:
    """A variant as the bundle states it."""

    name: str
    requires: tuple[str, ...] = ()


def default_threads(cores: int | None) -> tuple[int, ...]:
    """Return the thread counts worth a try: 1, 2, 4 … and all cores, at most 8."""
    most = max(1, min(cores or 1, 8))
    return tuple(sorted({1, most, *(count for count in (2, 4) if count <= most)}))


def unavailable(candidate: Candidate, reason: str) -> CandidateResult:
    """Return the result of a candidate that cannot take part."""
    return CandidateResult(
        id=candidate.id,
        runtime=candidate.runtime,
        variant=candidate.variant,
        delegate=candidate.delegate,
        threads=candidate.threads,
        outcome=Outcome.UNAVAILABLE,
        reason=reason,
    )


def enumerate_candidates(
    entrants: Iterable[Entrant],
    runtimes: Mapping[str, str | None],
    board: BoardFacts,
    threads: Sequence[int],
) -> tuple[list[Candidate], list[CandidateResult]]:
    """Return the candidates to race, simplest first, and a result with its reason for each that cannot take part.

    Args:
        runtimes: name -> None when it works here, or why it does not; in order of preference.
        threads: thread counts to try.
    """
    candidates: list[Candidate] = []
    absent: list[CandidateResult] = []
    for entrant in entrants:
        if entrant.requires:
            absent += [
                unavailable(Candidate("litert", entrant.name, required, 1), explain_absence(required, board))
                for required in entrant.requires
            ]
            continue
        for runtime, reason in runtimes.items():
            if reason is not None:
                absent.append(unavailable(Candidate(runtime, entrant.name, "none", 1), reason))
                continue
            candidates += [
                Candidate(runtime, entrant.name, delegate, count) for count in threads for delegate in CPU_DELEGATES
            ]
    return sorted(candidates, key=lambda candidate: candidate.threads), absent
