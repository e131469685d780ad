"""From power to energy per inference, with its uncertainty. Pure.

    energy per inference = (∫P dt − P_idle · T) / N

P_idle is the mean of the idle before and after, by their durations. Standard uncertainties (GUM, JCGM 100:2008) are
added as squares: those of the levels (level.py), half a step of the sensor each way in load and idle (uniform), and
idle's drift from before to after. Twice their root is told, which holds the truth 95 times of 100. The sensor's own
gain is not in it: it is the same for all candidates, and only a better meter knows it.

No energy is told when inferring draws less than SIGMAS of idle more than idle.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from regatta_protocol.values import Power, unknown_power
from regatta_runtimes.power.level import UNIFORM, Level
from regatta_runtimes.power.sensor import PowerSensor

__all__ = ["SIGMAS", "Idle", "Run", "energy_of", "idle_of"]

SIGMAS = 3  # serving.md, Power
_COVERAGE_FACTOR = 2
_RESTLESS = 0.5  # changes a period: 20 periods without one are then no chance
_MEDIAN_COST = math.sqrt(math.pi / 2)  # a median's standard error over a mean's


@dataclass(frozen=True)
class Idle:
    """What the board draws when it waits."""

    mean_mw: float
    sigma_mw: float  # of single readings, drift included
    error_mw: float
    step_mw: float = 0.0  # the sensor's, as in Level
    same: bool = False  # every reading was the same
    restless: bool = False  # readings differed from period to period, as those of a live sensor do


@dataclass(frozen=True)
class Run:
    """A span of inferring."""

    level: Level
    inferences: int


def idle_of(before: Level, after: Level | None = None) -> Idle:
    """Return the idle power from the levels on both sides of the load, or from one where there is no other."""
    after = after or before
    share = before.duration_s / (before.duration_s + after.duration_s)
    drift_mw = abs(after.mean_mw - before.mean_mw)
    errors_mw = (before.error_mw * share, after.error_mw * (1 - share))
    spread_mw = math.sqrt(before.spread_mw**2 * share + after.spread_mw**2 * (1 - share))
    return Idle(
        mean_mw=before.mean_mw * share + after.mean_mw * (1 - share),
        sigma_mw=math.hypot(spread_mw, drift_mw / 2),
        error_mw=before.error_mw if after is before else math.hypot(*errors_mw, drift_mw / UNIFORM),
        step_mw=min(before.step_mw, after.step_mw) or max(before.step_mw, after.step_mw),
        same=before.same and after.same and drift_mw == 0,
        restless=min(before.changes_per_period, after.changes_per_period) > _RESTLESS,
    )


def energy_of(runs: Sequence[Run], idle: Idle | None, sensor: PowerSensor, period_s: float) -> Power:
    """Return power and energy per inference over the runs: the median of theirs.

    The power is known when the energy is not: then the energy is None and the reason says why.
    """
    if not runs or any(run.inferences < 1 for run in runs):
        return unknown_power("nothing was inferred while the power was measured")
    power = Power(
        method=sensor.method,
        coverage=sensor.coverage,
        sensor=sensor.name,
        sensor_period_ms=round(period_s * 1000, 3),
        power_mw=round(statistics.median(run.level.mean_mw for run in runs), 3),
        duration_s=round(sum(run.level.duration_s for run in runs), 3),
        repetitions=len(runs),
    )
    if idle is None:
        return replace(power, reason="idle power is not known yet, so energy is not: there was no quiet time")
    power = replace(power, idle_power_mw=round(idle.mean_mw, 3))
    net_mw = statistics.median(run.level.mean_mw - idle.mean_mw for run in runs)
    stuck = _stuck(runs, idle, net_mw)
    if stuck is not None:
        return unknown_power(f"sensor {sensor.name} {stuck}")
    per_inference_s = [run.level.duration_s / run.inferences for run in runs]
    energies_mj = [
        (run.level.mean_mw - idle.mean_mw) * each_s for run, each_s in zip(runs, per_inference_s, strict=True)
    ]
    steps_mw = [each for each in (idle.step_mw, *(run.level.step_mw for run in runs)) if each > 0]
    step_mw = min(steps_mw, default=0.0) / UNIFORM
    idle_mw = math.hypot(idle.error_mw, math.sqrt(2) * step_mw)
    error_mj = math.hypot(_random_mj(runs, energies_mj, per_inference_s), idle_mw * statistics.median(per_inference_s))
    error_mw = error_mj / statistics.median(per_inference_s)
    needed_mw = SIGMAS * max(math.hypot(idle.sigma_mw, step_mw), error_mw)
    if net_mw < needed_mw:
        reason = (
            f"inferring draws {net_mw:.0f} mW more than idle, under {SIGMAS} sigma of it ({needed_mw:.0f} mW): "
            "the energy cannot be told from noise"
        )
        return replace(power, reason=reason)
    coarse = not sensor.counts and not steps_mw
    note = (
        "every reading was the same, so the sensor's step is unknown, and with it the uncertainty" if coarse else None
    )
    return replace(
        power,
        energy_per_inference_mj=statistics.median(energies_mj),
        energy_uncertainty_mj=None if coarse else _COVERAGE_FACTOR * error_mj,
        reason=note,
    )


def _stuck(runs: Sequence[Run], idle: Idle, net_mw: float) -> str | None:
    """Return why figures that never change are a sensor's fault and not a steady board's."""
    stuck_mw = next((run.level.mean_mw for run in runs if run.level.same), None)
    if stuck_mw is None:
        return None
    if idle.same and net_mw == 0:
        same = f"gave {stuck_mw:.0f} mW in every reading, idle and inferring"
        return f"{same}: it is frozen, or its steps are too coarse"
    if idle.restless:
        return f"froze: it gave {stuck_mw:.0f} mW all the while, and changed from period to period when idle"
    return None


def _random_mj(runs: Sequence[Run], energies_mj: Sequence[float], per_inference_s: Sequence[float]) -> float:
    """Return the runs' part in the standard uncertainty of their median; it shrinks with their number."""
    count = len(runs)
    single_mj = statistics.median(
        run.level.error_mw * each_s for run, each_s in zip(runs, per_inference_s, strict=True)
    )
    scatter_mj = statistics.stdev(energies_mj) if count > 1 else 0.0
    return max(single_mj, scatter_mj) / math.sqrt(count) * (_MEDIAN_COST if count > 2 else 1.0)
