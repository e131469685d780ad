"""What an earlier race claims about this board, which few candidates can tell whether it holds, and whether it does.

Pure. A prior is a hint from wherever: an older race of this board or one of another device, which may be wrong or lie.
It decides only what is tried first. Nothing of its figures gets into a report, except in words beside the device's
name; what is placed was found sound, accurate and fast enough here. The rules:

1. a prior is heard when it is a full race with this board's key and says something about every candidate here;
2. it is judged anew under today's policy and floor, so a changed policy needs no new race, unless a candidate that was
   too inaccurate or quarantined then would not be now, or the objective is energy, which a short run cannot measure;
3. tried are the winner, the two next best, one more drawn by lot, and the naive default of the CPU as an anchor. The
   lot makes devices of a kind try different ones, so that a candidate wrongly called slow is found out;
4. it holds when each of them is sound here, the winner still meets the policy and is within noise of the best, and its
   time over the anchor's is at most RATIO_FACTOR times what it was. Ratios, because a busy board is slower at
   everything; one-sided, because a winner that wins by more than was claimed is no less the winner.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from regatta_protocol.ids import Digest
from regatta_protocol.measurement import CandidateResult, Outcome, PriorRace, RaceOrigin
from regatta_protocol.policy import Policy
from regatta_runtimes.candidate import Candidate
from regatta_runtimes.choice.judge import Verdict, judge
from regatta_runtimes.choice.limits import broken_constraint
from regatta_runtimes.choice.objective import cost
from regatta_runtimes.choice.simplicity import simplicity
from regatta_runtimes.choice.yardstick import Floor, loses_too_much
from regatta_runtimes.runtime import is_own

__all__ = ["RATIO_FACTOR", "Claim", "claim_of", "disagreement", "untried"]

# Full races of one model on one machine differed by up to 1.4 in this ratio (ResNet8 float32, two threads on a virtual
# machine with two cores: 0.11 and 0.15); an accelerator that fell back to the processor differs by far more than 1.5.
RATIO_FACTOR = 1.5
# what the objective may be worse than the best one's: rounds of so short a run differ by that much on a busy board
_NOISE = 0.10
_RIVALS = 2
_FIGURES = (Outcome.MEASURED, Outcome.DROPPED)  # outcomes whose latency says something


@dataclass(frozen=True)
class Claim:
    """What a prior comes to here."""

    origin: RaceOrigin
    placement: Candidate
    tried: tuple[Candidate, ...]  # the placement first
    anchor: Candidate | None  # None when the board has no other way to run the model
    ratio: float | None  # p50 of the placement over that of the anchor
    results: Mapping[str, CandidateResult]  # of every candidate here


def claim_of(
    prior: PriorRace,
    key: Digest,
    candidates: Sequence[Candidate],
    policy: Policy,
    floor: Floor | None,
    quarantined: Collection[str],
    lot: Random,
) -> Claim | str:
    """Return what the prior claims, or why it is of no use here.

    Args:
        candidates: those that this board has.
        quarantined: ids of those that it does not try.
        lot: draws the one that is tried besides the best.
    """
    report = prior.report
    if report.key != key or report.basis != "full":
        return "it is no full race with this board's key"
    known = {result.id: result for result in report.candidates}
    missing = [candidate.id for candidate in candidates if candidate.id not in known]
    if missing:
        return f"it says nothing about {missing[0]}"
    results = [known[candidate.id] for candidate in candidates]
    for result in results:
        if result.outcome == Outcome.INACCURATE and not _is_inaccurate(result, policy, floor):
            return f"{result.id} was too inaccurate under the policy of then, and may take part under today's"
        if result.outcome == Outcome.QUARANTINED and result.id not in quarantined:
            return f"{result.id} was quarantined there, and may take part here"
    verdict = judge(results, policy, floor)
    if verdict.placement is None:
        return "none of its candidates meets today's policy"
    if verdict.objective == "energy":
        return "the policy chooses by energy, which takes longer to measure than a confirmation"
    return _claim(prior, candidates, verdict.placement, known, lot)


def _is_inaccurate(result: CandidateResult, policy: Policy, floor: Floor | None) -> bool:
    """Return whether today's policy refuses the accuracy that the candidate had there."""
    refused = None if floor is None else floor.refuses(result.accuracy)
    return (refused or loses_too_much(result.accuracy_drop, policy)) is not None


def _claim(
    prior: PriorRace,
    candidates: Sequence[Candidate],
    placement: str,
    known: Mapping[str, CandidateResult],
    lot: Random,
) -> Claim:
    winner = next(candidate for candidate in candidates if candidate.id == placement)
    p50s = {
        candidate: result.latency.p50_us
        for candidate in candidates
        if (result := known[candidate.id]).outcome in _FIGURES and result.latency is not None
    }
    others = sorted((one for one in p50s if one != winner), key=lambda one: (p50s[one], simplicity(one)))
    rivals, rest = others[:_RIVALS], others[_RIVALS:]
    drawn = [lot.choice(rest)] if rest else []
    anchor = _anchor(winner, others)
    tried = dict.fromkeys([winner, *rivals, *drawn, *([] if anchor is None else [anchor])])
    ratio = None if anchor is None or not p50s[anchor] else p50s[winner] / p50s[anchor]
    return Claim(
        origin=RaceOrigin(device=prior.device, at=prior.at, placement=placement),
        placement=winner,
        tried=tuple(tried),
        anchor=anchor,
        ratio=ratio or None,
        results={candidate.id: known[candidate.id] for candidate in candidates},
    )


def _anchor(winner: Candidate, others: Sequence[Candidate]) -> Candidate | None:
    """Return the simplest other way on the CPU, of the winner's variant if it can be."""
    naive = [one for one in others if is_own(one.runtime, one.delegate) and one.threads == 1]
    return min(naive, key=lambda one: (one.variant != winner.variant, simplicity(one)), default=None)


def disagreement(claim: Claim, verdict: Verdict, policy: Policy) -> str | None:
    """Return why the claim does not hold by what was measured here, or None when it does.

    Args:
        verdict: over the candidates that were tried.
    """
    here = {result.id: result for result in verdict.candidates}
    for candidate in claim.tried:
        result = here[candidate.id]
        if result.outcome == Outcome.INACCURATE and candidate != claim.placement:
            continue  # a slower one's accuracy may never have been measured there, and it is out by itself
        if result.outcome != Outcome.MEASURED:
            return f"{candidate.id} is {result.outcome} here: {result.reason or 'no reason given'}"
    placed = here[claim.placement.id]
    broken = broken_constraint(placed, policy)
    if broken is not None:
        return f"{placed.id} does not meet the policy here: {broken}"
    best = here[verdict.placement or placed.id]
    ours, least = cost(placed, verdict.objective), cost(best, verdict.objective)
    ratio = 1.0 if ours is None or least is None else ours / max(least, 1e-12)
    if ratio > 1 + _NOISE:
        return f"{best.id} beats {placed.id} here: {ratio:.2f} times its time"
    return _shifted(claim, here)


def _shifted(claim: Claim, here: Mapping[str, CandidateResult]) -> str | None:
    """Return that the placement's time over the anchor's is worse than it was."""
    if claim.anchor is None or claim.ratio is None:
        return None
    ours = _p50(here[claim.placement.id]) / max(_p50(here[claim.anchor.id]), 1e-9)
    if ours <= claim.ratio * RATIO_FACTOR:
        return None
    return (
        f"{claim.placement.id} takes {ours:.2f} times the time of {claim.anchor.id} here and {claim.ratio:.2f} times "
        f"on {claim.origin.device}"
    )


def untried(claim: Claim) -> list[CandidateResult]:
    """Return a result without figures for each candidate that was not tried here, with what the prior says in words."""
    fastest_us = _p50(claim.results[claim.placement.id])
    return [
        CandidateResult(
            id=result.id,
            runtime=result.runtime,
            variant=result.variant,
            delegate=result.delegate,
            threads=result.threads,
            option_set=result.option_set,
            outcome=Outcome.DROPPED,
            reason=f"not tried again: {_words(result, fastest_us)} on {claim.origin.device}",
        )
        for result in claim.results.values()
        if result.id not in {candidate.id for candidate in claim.tried}
    ]


def _words(result: CandidateResult, fastest_us: float) -> str:
    if result.outcome in _FIGURES and result.latency is not None:
        return f"{result.latency.p50_us / max(fastest_us, 1e-9):.2f} times the placement's time"
    return str(result.outcome).replace("_", " ")


def _p50(result: CandidateResult) -> float:
    return result.latency.p50_us if result.latency is not None else 0.0
