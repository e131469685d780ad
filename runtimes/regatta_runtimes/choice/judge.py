"""Chooses the placement among measured candidates by the policy, and says in plain words why each other lost.

Pure. Rules, in this order:
1. a candidate that was not measured cannot win;
2. nor one that loses more accuracy than the policy allows (yardstick.py);
3. nor one over a limit of the policy: p99, memory, temperature, power; a limit that cannot be checked refuses nobody
   and is told (limits.py);
4. the best by the objective wins, but for a tie: what is at most TIE worse is as good, and the simplest of those wins
   (simplicity.py): fewer threads, then no delegate before one, then litert before tflite, then the id. So simplicity
   costs at most TIE of the objective;
5. an objective that is unknown for an eligible candidate falls back to latency p50 for all, and says so (objective.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from regatta_protocol.measurement import CandidateResult, Outcome
from regatta_protocol.policy import Objective, Policy
from regatta_runtimes.choice.limits import broken_constraint, unchecked_limits
from regatta_runtimes.choice.objective import choose_objective, cost, figure, times
from regatta_runtimes.choice.simplicity import simpler_because, simplicity
from regatta_runtimes.choice.yardstick import Floor, loses_too_much

__all__ = ["TIE", "Verdict", "judge", "tied"]

TIE = 0.01  # of the objective: half of the regret that a race aims at, the other half is the noise's
_MAX_REASON_CHARS = 4000  # some 25 candidates with their reasons; the report has them all


@dataclass(frozen=True)
class Verdict:
    """The winner's id or None, why, what was judged by, and every result with its reason."""

    placement: str | None
    reason: str
    objective: Objective
    candidates: tuple[CandidateResult, ...]


def judge(results: Sequence[CandidateResult], policy: Policy, floor: Floor | None) -> Verdict:
    """Return the verdict over the results of a race.

    Args:
        results: in any order; outcome MEASURED marks those that may win.
        floor: see yardstick.accuracy_floor.
    """
    results = [_gate(result, policy, floor) for result in results]
    refused = {result.id: broken_constraint(result, policy) for result in results if result.outcome == Outcome.MEASURED}
    eligible = [result for result in results if result.id in refused and refused[result.id] is None]
    objective, fallback = choose_objective(eligible, policy)
    if not eligible:
        judged = tuple(_explain(result, refused.get(result.id)) for result in results)
        return Verdict(None, _nothing(judged, floor), objective, judged)
    best = min(eligible, key=lambda result: (_known_cost(result, objective), result.id))
    ties = tied(eligible, objective)
    winner = min(ties, key=simplicity)
    won = _won(winner, best, objective)
    reasons = {
        result.id: _lost(result, winner, best, objective, result in ties) for result in eligible if result is not winner
    }
    judged = tuple(
        _explain(result, won if result is winner else reasons.get(result.id) or refused.get(result.id))
        for result in results
    )
    said = (f"{winner.id}: {won}", fallback, *unchecked_limits(winner, policy))
    return Verdict(winner.id, "; ".join(part for part in said if part)[:_MAX_REASON_CHARS], objective, judged)


def tied(eligible: Iterable[CandidateResult], objective: Objective) -> list[CandidateResult]:
    """Return those within TIE of the best by the objective, the best included; each must have the figure."""
    results = list(eligible)
    best = min((_known_cost(result, objective) for result in results), default=0.0)
    return [result for result in results if _known_cost(result, objective) <= best * (1 + TIE)]


def _known_cost(result: CandidateResult, objective: Objective) -> float:
    value = cost(result, objective)
    assert value is not None, f"choose_objective left {result.id} without {objective}"
    return value


def _gate(result: CandidateResult, policy: Policy, floor: Floor | None) -> CandidateResult:
    """Return the result, as INACCURATE if it was measured and loses too much."""
    if result.outcome != Outcome.MEASURED:
        return result
    reason = floor.refuses(result.accuracy) if floor is not None else None
    reason = reason or loses_too_much(result.accuracy_drop, policy)
    return result.model_copy(update={"outcome": Outcome.INACCURATE, "reason": reason}) if reason else result


def _won(winner: CandidateResult, best: CandidateResult, objective: Objective) -> str:
    if winner.id == best.id:
        return f"best {figure(winner, objective)}"
    return (
        f"{figure(winner, objective)}, within {TIE:.0%} of {best.id} ({figure(best, objective)}) and simpler "
        f"({simpler_because(winner, best)})"
    )


def _lost(
    result: CandidateResult, winner: CandidateResult, best: CandidateResult, objective: Objective, tie: bool
) -> str:
    """Return why an eligible candidate is not the winner."""
    if tie:
        why = simpler_because(winner, result)
        return f"{figure(result, objective)} is a tie within {TIE:.0%}, and {winner.id} is simpler ({why})"
    ratio = _known_cost(result, objective) / max(_known_cost(best, objective), 1e-9)
    return f"{figure(result, objective)}, {times(ratio, objective)} of {best.id}"


def _explain(result: CandidateResult, reason: str | None) -> CandidateResult:
    return result if reason is None else result.model_copy(update={"reason": reason})


def _nothing(results: Sequence[CandidateResult], floor: Floor | None) -> str:
    """Return why nothing is placed: every candidate with its reason, alike ones once."""
    if not results:
        return "nothing can be placed: the bundle has no variant"
    reasons: dict[str, list[str]] = {}
    for result in results:
        reasons.setdefault(f"{result.outcome}: {result.reason or 'no reason given'}", []).append(result.id)
    parts = [f"{', '.join(ids)} {why}" for why, ids in reasons.items()]
    bound = f" (accuracy must be at least {floor.value:.3f})" if floor is not None else ""
    text = f"nothing can be placed{bound}: {'; '.join(parts)}"
    return text if len(text) <= _MAX_REASON_CHARS else f"{text[:_MAX_REASON_CHARS]}…"
