"""Which of two candidates is the simpler one: what ties are broken by, and what is tried first. Pure."""

from __future__ import annotations

from regatta_protocol.measurement import CandidateResult
from regatta_runtimes.candidate import Candidate
from regatta_runtimes.runtime import RUNTIMES

__all__ = ["simpler_because", "simplicity"]

_RUNTIME_ORDER = {name: place for place, name in enumerate(RUNTIMES)}


def simplicity(result: CandidateResult | Candidate) -> tuple[int, bool, int, str]:
    """Return what orders candidates from simple to less so: threads, delegate or not, runtime, id."""
    return result.threads, result.delegate != "none", _RUNTIME_ORDER.get(result.runtime, 9), result.id


def simpler_because(winner: CandidateResult, other: CandidateResult) -> str:
    """Return in words by what the winner is simpler than the other."""
    if winner.threads != other.threads:
        return "fewer threads"
    if (winner.delegate != "none") != (other.delegate != "none"):
        return "no delegate"
    if winner.runtime != other.runtime:
        return f"{winner.runtime} comes before {other.runtime}"
    return "its name comes first"
