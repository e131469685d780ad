"""The policy: how a device chooses among candidates and watches a new version. It is in the bundle, or set per group.

Every limit is None when there is none. What a limit is held against, and what happens when that figure is unknown on a
board, is docs/race.md's and `regatta_runtimes.limits`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from regatta_protocol.wire import Wire

__all__ = ["Objective", "Policy"]

Objective = Literal["latency_p50", "latency_p99", "energy", "throughput"]


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
