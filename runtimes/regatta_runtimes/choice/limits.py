"""The policy's limits on a measured candidate: which one it breaks, and which could not be checked on this board.

Pure. Unknown is never 0 and never a breach: a candidate whose figure is unknown is not refused for it, because the
board, and not the candidate, lacks the sensor, and it would lack it for every candidate alike. The verdict says in
words that the limit could not be checked. A candidate without a latency is no measured one, so p99 is always known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from regatta_protocol.measurement import CandidateResult
from regatta_protocol.policy import Policy

__all__ = ["broken_constraint", "limits_in_words", "unchecked_limits"]


@dataclass(frozen=True)
class _Limit:
    """One limit of a policy, the figure that it bounds, and why that may be unknown."""

    name: str
    bound: Callable[[Policy], float | None]
    value: Callable[[CandidateResult], float | None]
    unknown: Callable[[CandidateResult], str]
    unit: str
    unit_size: float = 1.0  # in the figure's own unit

    def text(self, value: float) -> str:
        shown = value / self.unit_size
        return f"{shown:.0f} {self.unit}" if shown >= 1000 else f"{shown:.4g} {self.unit}"


_LIMITS = (
    _Limit(
        "p99",
        lambda policy: policy.max_p99_us,
        lambda result: None if result.latency is None else result.latency.p99_us,
        lambda _result: "it was not timed",
        "us",
    ),
    _Limit(
        "memory",
        lambda policy: policy.max_memory_bytes,
        lambda result: result.peak_rss_bytes,
        lambda _result: "its memory could not be read",
        "MiB",
        float(1 << 20),
    ),
    _Limit(
        "temperature",
        lambda policy: policy.max_temperature_c,
        lambda result: result.conditions.temperature_c,
        lambda _result: "the temperature is unknown, for this board has no sensor that can be read",
        "°C",
    ),
    _Limit(
        "power",
        lambda policy: policy.max_power_mw,
        lambda result: result.power.power_mw,
        lambda result: f"power is unknown ({result.power.reason or 'not measured'})",
        "mW",
    ),
)


def broken_constraint(result: CandidateResult, policy: Policy) -> str | None:
    """Return which limit of the policy a measured candidate breaks, or None."""
    if result.latency is None:
        return "it has no latency"
    for limit in _LIMITS:
        bound, value = limit.bound(policy), limit.value(result)
        if bound is not None and value is not None and value > bound:
            return f"its {limit.name} of {limit.text(value)} is over the policy's {limit.text(bound)}"
    return None


def unchecked_limits(result: CandidateResult, policy: Policy) -> tuple[str, ...]:
    """Return in words each limit that could not be checked, for its figure is unknown here."""
    return tuple(
        f"the policy's limit of {limit.text(bound)} on {limit.name} could not be checked: {limit.unknown(result)}"
        for limit in _LIMITS
        if (bound := limit.bound(policy)) is not None and limit.value(result) is None
    )


def limits_in_words(policy: Policy) -> tuple[str, ...]:
    """Return each limit as a person would ask for it, the accuracy drop first."""
    bounds = ((limit, limit.bound(policy)) for limit in _LIMITS)
    texts = tuple(f"{limit.name} at most {limit.text(bound)}" for limit, bound in bounds if bound is not None)
    points = f"{policy.max_accuracy_drop * 100:.3g}"
    return (f"at most {points} point{'' if points == '1' else 's'} of accuracy lost", *texts)
