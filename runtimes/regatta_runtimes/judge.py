"""Chooses the placement among measured candidates by the bundle's policy, and says in plain words why each other lost.

Pure. Rules, in this order:
1. a candidate that was not measured cannot win;
2. nor one that loses more accuracy than the policy allows against the best variant's fleet-measured accuracy;
3. nor one over the policy's p99 or memory limit;
4. the least of the objective wins; what is within noise of it is a tie, and the simpler wins a tie: fewer threads,
   then no delegate before one, then litert before tflite, then the id;
5. an energy objective without an energy figure for every eligible candidate falls back to latency, and says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from regatta_protocol.manifest import Policy
from regatta_protocol.measurement import Accuracy, CandidateResult, Outcome
from regatta_runtimes.candidate import Candidate

__all__ = ["MAX_NOISE", "MIN_NOISE", "Floor", "Verdict", "accuracy_floor", "broken_constraint", "judge", "simplicity"]

MIN_NOISE = 0.02  # closer than this is a tie whatever the rounds say: regret of 2 % is what a race aims at
MAX_NOISE = 0.10  # on a busy board rounds may differ by half; a tie that wide would give the race away
_RUNTIME_ORDER = {"litert": 0, "tflite": 1}


@dataclass(frozen=True)
class Verdict:
    """The winner's id or None, why, what was judged by, and every result with its reason."""

    placement: str | None
    reason: str
    objective: str
    candidates: tuple[CandidateResult, ...]


@dataclass(frozen=True)
class Floor:
    """The least accuracy that a candidate may have, and the size of the evaluation that it came from."""

    value: float
    total: int

    def refuses(self, accuracy: Accuracy | None) -> str | None:
        """Return why a candidate of this accuracy is out, or None.

        An evaluation that its time budget cut short is out only when the upper end of its 95 % interval is under the
        floor, for chance alone may put it under.
        """
        if accuracy is None:
            return None
        value = accuracy.value if accuracy.total >= self.total else accuracy.interval()[1]
        if value >= self.value - 1e-9:
            return None
        return (
            f"its accuracy of {accuracy.value:.3f} ({accuracy.correct} of {accuracy.total}) is under the "
            f"{self.value:.3f} that the policy asks for"
        )


def accuracy_floor(fleet: Sequence[Accuracy | None], policy: Policy) -> Floor | None:
    """Return the floor from the variants' fleet-measured accuracies; None when the fleet measured none."""
    best = max((accuracy for accuracy in fleet if accuracy is not None), key=lambda a: a.value, default=None)
    return None if best is None else Floor(best.value - policy.max_accuracy_drop, best.total)


def judge(
    results: Sequence[CandidateResult],
    policy: Policy,
    floor: Floor | None,
    noise: Mapping[str, float] | None = None,
) -> Verdict:
    """Return the verdict over the results of a race.

    Args:
        results: in any order; outcome MEASURED marks those that may win.
        floor: see accuracy_floor.
        noise: id -> relative spread of the candidate's rounds; clipped to [MIN_NOISE, MAX_NOISE].
    """
    results = [_gate(result, floor) for result in results]
    refused = {result.id: broken_constraint(result, policy) for result in results if result.outcome == Outcome.MEASURED}
    eligible = [result for result in results if result.id in refused and refused[result.id] is None]
    objective, fallback = _objective(eligible, policy)
    if not eligible:
        judged = tuple(_explain(result, refused.get(result.id)) for result in results)
        return Verdict(None, _nothing(judged, floor), objective, judged)
    best = min(eligible, key=lambda result: (_cost(result, objective), result.id))
    tied = [
        result
        for result in eligible
        if _cost(result, objective) <= _cost(best, objective) * (1 + _spread(best, result, noise or {}))
    ]
    winner = min(tied, key=simplicity)
    others = {
        result.id: _lost(result, winner, best, objective, any(result.id == tie.id for tie in tied))
        for result in eligible
        if result.id != winner.id
    }
    judged = tuple(
        result.model_copy(update={"reason": _won(winner, best, objective)})
        if result.id == winner.id
        else _explain(result, others.get(result.id) or refused.get(result.id))
        for result in results
    )
    reason = f"{winner.id}: {_won(winner, best, objective)}"
    return Verdict(winner.id, f"{reason}; {fallback}" if fallback else reason, objective, judged)


def _gate(result: CandidateResult, floor: Floor | None) -> CandidateResult:
    """Return the result, as INACCURATE if it was measured and is under the floor."""
    reason = floor.refuses(result.accuracy) if floor is not None and result.outcome == Outcome.MEASURED else None
    return result.model_copy(update={"outcome": Outcome.INACCURATE, "reason": reason}) if reason else result


def broken_constraint(result: CandidateResult, policy: Policy) -> str | None:
    """Return which constraint of the policy a measured candidate breaks, or None."""
    if result.latency is None:
        return "it has no latency"
    if policy.max_p99_us is not None and result.latency.p99_us > policy.max_p99_us:
        return f"its p99 of {result.latency.p99_us:.0f} us is over the policy's {policy.max_p99_us:.0f} us"
    if policy.max_memory_bytes is not None:
        if result.peak_rss_bytes is None:
            return "its memory is unknown and the policy limits memory"
        if result.peak_rss_bytes > policy.max_memory_bytes:
            return (
                f"it used {result.peak_rss_bytes / 2**20:.1f} MiB, over the policy's "
                f"{policy.max_memory_bytes / 2**20:.1f} MiB"
            )
    return None


def _objective(eligible: Sequence[CandidateResult], policy: Policy) -> tuple[str, str | None]:
    """Return what to judge by, and why not by what the policy names where that is so."""
    if policy.objective != "energy":
        return policy.objective, None
    unknown = next((result for result in eligible if result.power.energy_per_inference_mj is None), None)
    if unknown is None:
        return "energy", None
    return "latency_p50", f"judged by latency, for energy is unknown: {unknown.power.reason or 'not measured'}"


def _cost(result: CandidateResult, objective: str) -> float:
    """Return the figure to minimize, in microseconds or millijoules."""
    if objective == "energy":
        assert result.power.energy_per_inference_mj is not None
        return result.power.energy_per_inference_mj
    assert result.latency is not None
    return result.latency.p99_us if objective == "latency_p99" else result.latency.p50_us


def _spread(best: CandidateResult, other: CandidateResult, noise: Mapping[str, float]) -> float:
    worst = max(noise.get(best.id, 0.0), noise.get(other.id, 0.0))
    return min(MAX_NOISE, max(MIN_NOISE, worst))


def simplicity(result: CandidateResult | Candidate) -> tuple[int, bool, int, str]:
    """Return what orders candidates from simple to less so: threads, delegate or not, runtime, id."""
    return result.threads, result.delegate != "none", _RUNTIME_ORDER.get(result.runtime, 9), result.id


def _figure(result: CandidateResult, objective: str) -> str:
    """Return the objective's figure with its unit."""
    cost = _cost(result, objective)
    if objective == "energy":
        return f"{cost:.3g} mJ an inference"
    return f"{objective.removeprefix('latency_')} {cost:.0f} us" if cost >= 100 else f"{objective[8:]} {cost:.1f} us"


def _won(winner: CandidateResult, best: CandidateResult, objective: str) -> str:
    if winner.id == best.id:
        return f"best {_figure(winner, objective)}"
    return f"{_figure(winner, objective)}, within noise of {best.id} ({_figure(best, objective)}) and simpler"


def _lost(result: CandidateResult, winner: CandidateResult, best: CandidateResult, objective: str, tied: bool) -> str:
    """Return why an eligible candidate is not the winner."""
    if tied:
        return f"{_figure(result, objective)} is a tie within noise, and {winner.id} is simpler"
    ratio = _cost(result, objective) / max(_cost(best, objective), 1e-9)
    word = "the energy" if objective == "energy" else "the time"
    return f"{_figure(result, objective)}, {ratio:.2f} times {word} of {best.id}"


def _explain(result: CandidateResult, reason: str | None) -> CandidateResult:
    return result if reason is None else result.model_copy(update={"reason": reason})


def _nothing(results: Sequence[CandidateResult], floor: Floor | None) -> str:
    """Return why nothing is placed: every candidate with its reason, alike ones once."""
    if not results:
        return "nothing can be placed: the bundle has no variant"
    reasons: dict[str, list[str]] = {}
    for result in results:
        reasons.setdefault(f"{result.outcome}: {result.reason or 'no reason given'}", []).append(result.id)
    parts = [
        f"{', '.join(ids[:3])}{f' and {len(ids) - 3} more' if len(ids) > 3 else ''} {why}"
        for why, ids in reasons.items()
    ]
    bound = f" (accuracy must be at least {floor.value:.3f})" if floor is not None else ""
    return f"nothing can be placed{bound}: {'; '.join(parts)}"[:2000]
