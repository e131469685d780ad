"""The figure that a race is judged by: its cost (less is better), its words, and what stands in where it is unknown.

Pure. A board without a power sensor knows no energy. The objective then is the latency p50, for every candidate alike,
and the verdict says so; a comparison of one candidate's energy with another's latency would mean nothing. It is the
same with an objective that only a newer fleet knows.
"""

from __future__ import annotations

from collections.abc import Iterable

from regatta_protocol.measurement import CandidateResult
from regatta_protocol.policy import Objective, Policy

__all__ = ["FALLBACK", "OBJECTIVES", "better", "choose_objective", "cost", "figure", "times"]

FALLBACK: Objective = "latency_p50"

OBJECTIVES: dict[Objective, str] = {
    "latency_p50": "the least median latency (p50)",
    "latency_p99": "the least p99 latency",
    "energy": "the least energy per inference",
    "throughput": "the greatest throughput",
}


def choose_objective(results: Iterable[CandidateResult], policy: Policy) -> tuple[Objective, str | None]:
    """Return what to judge these candidates by, and why not by what the policy names where that is so."""
    if policy.objective not in OBJECTIVES:
        why = f"this agent does not know the objective {policy.objective}: update it"
        return FALLBACK, f"judged by latency p50, for {why}"
    for result in results:
        if cost(result, policy.objective) is None:
            why = result.power.reason or "not measured" if policy.objective == "energy" else "it was not measured"
            return FALLBACK, f"judged by latency p50, for {policy.objective} is unknown: {why}"
    return policy.objective, None


def cost(result: CandidateResult, objective: str) -> float | None:
    """Return the figure to minimize: microseconds, millijoules, or seconds an inference; None when it is unknown."""
    if objective == "energy":
        return result.power.energy_per_inference_mj
    if objective == "throughput":
        return 1.0 / result.throughput_per_s if result.throughput_per_s else None
    if result.latency is None:
        return None
    return result.latency.p99_us if objective == "latency_p99" else result.latency.p50_us


def figure(result: CandidateResult, objective: Objective) -> str:
    """Return the objective's figure of a candidate with its unit, or that it is unknown."""
    value = cost(result, objective)
    if value is None:
        return f"{objective} unknown"
    if objective == "energy":
        return f"{value:.3g} mJ an inference"
    if objective == "throughput":
        per_s = 1 / value
        return f"{per_s:.0f} inferences a second" if per_s >= 1000 else f"{per_s:.4g} inferences a second"
    return f"{objective.removeprefix('latency_')} {value:.0f} us" if value >= 100 else f"{objective[8:]} {value:.1f} us"


def times(ratio: float, objective: Objective) -> str:
    """Return in words that a candidate costs `ratio` times what another does: `2.41 times the time`."""
    what = {"energy": "the energy", "throughput": "the time an inference"}.get(objective, "the time")
    return f"{ratio:.2f} times {what}"


def better(ratio: float, objective: Objective) -> str:
    """Return in words how much better a candidate is than one that costs `ratio` times as much."""
    if objective == "energy":
        return f"{100 / max(ratio, 1e-9):.0f} % of the energy of"
    return f"{ratio:.2f} times as fast as" if ratio < 10 else f"{ratio:.1f} times as fast as"
