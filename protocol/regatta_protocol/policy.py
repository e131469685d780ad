"""The policy: how a device chooses among candidates and watches a new version. It is in the bundle, or set per group.

Every limit is None when there is none. What a limit is held against, and what happens when that figure is unknown on a
board, is docs/race.md's and `regatta_runtimes.choice.limits`. `Policy` reads an objective that only a newer peer knows:
a device then races by another and says so; the server passes it on. Where a person sets one, `KnownPolicy` refuses it.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from regatta_protocol.enums import Word
from regatta_protocol.wire import Wire

__all__ = ["OBJECTIVE_WORDS", "KnownPolicy", "Objective", "Policy"]

Objective = Word
OBJECTIVE_WORDS = ("latency_p50", "latency_p99", "energy", "throughput")


class Policy(Wire):
    """How a device chooses among candidates and watches a new version."""

    objective: Objective = "latency_p50"
    max_accuracy_drop: float = Field(default=0.02, ge=0, le=1)  # against the best variant's fleet-measured accuracy
    max_trial_accuracy_drop: float = Field(default=0.05, ge=0, le=1)  # against the version it replaces
    max_p99_us: float | None = Field(default=None, gt=0)
    max_memory_bytes: int | None = Field(default=None, gt=0)
    max_temperature_c: float | None = None
    max_power_mw: float | None = Field(default=None, gt=0)
    max_slowdown: float = Field(default=3.0, gt=1)  # served p50 over the race's: beyond it the next best takes over
    shadow_s: float = Field(default=0.0, ge=0, le=86_400)  # before its trial, a new version is shown live requests
    pool_size: int = Field(default=1, ge=1, le=4)  # placements that serve at once: the winner and the next best


def _known(policy: Policy) -> Policy:
    if policy.objective not in OBJECTIVE_WORDS:
        raise ValueError(f"there is no objective {policy.objective!r}; the objectives are {', '.join(OBJECTIVE_WORDS)}")
    return policy


KnownPolicy = Annotated[Policy, AfterValidator(_known)]
