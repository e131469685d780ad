"""The Pareto front of a race: the candidates that no other beats in every measured respect. Pure.

Respects, each in its own unit: latency p50, accuracy, energy per inference, memory (in whole MiB, for two runs of the
same candidate differ by pages). A respect counts when every candidate that reached the final rounds has its figure,
and a candidate stands for the front when it has the figure of every respect that counts. Those dropped for their speed
and those refused for their accuracy stand for it too: the front says what could be had for what, the policy chooses.
Dominance over the same respects is transitive, so every candidate off the front is dominated by one on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from regatta_protocol.measurement import CandidateResult, Outcome

__all__ = ["dominates", "pareto_front"]

Costs = tuple[float, ...]

_TIMED = (Outcome.MEASURED, Outcome.DROPPED, Outcome.INACCURATE)  # sound outputs, and a latency where they got so far


def _accuracy_lost(result: CandidateResult) -> float | None:
    return None if result.accuracy is None else 1.0 - result.accuracy.value


def _memory_mib(result: CandidateResult) -> float | None:
    return None if result.peak_rss_bytes is None else float(round(result.peak_rss_bytes / (1 << 20)))


_RESPECTS: tuple[Callable[[CandidateResult], float | None], ...] = (
    lambda result: None if result.latency is None else result.latency.p50_us,
    _accuracy_lost,
    lambda result: result.power.energy_per_inference_mj,
    _memory_mib,
)


def pareto_front(results: Iterable[CandidateResult]) -> tuple[str, ...]:
    """Return the front's ids, the fastest first."""
    timed = [result for result in results if result.outcome in _TIMED and result.latency is not None]
    finalists = [result for result in timed if result.outcome == Outcome.MEASURED] or timed
    respects = [respect for respect in _RESPECTS if all(respect(result) is not None for result in finalists)]
    pool: dict[str, Costs] = {}
    for result in timed:
        costs = [value for value in (respect(result) for respect in respects) if value is not None]
        if len(costs) == len(respects):
            pool[result.id] = tuple(costs)
    front = [name for name, costs in pool.items() if not any(dominates(other, costs) for other in pool.values())]
    return tuple(sorted(front, key=lambda name: (pool[name], name)))


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether `one` is nowhere worse (greater) than `other` and somewhere better."""
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))
