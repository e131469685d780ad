"""The mean power over a span of readings, with its uncertainty, or why there is none. Pure, and without numpy.

The integral is the trapezoid through the readings, or the difference of a counter's, which is exact. Before the first
and after the last reading the power is taken to be theirs. Standard uncertainties of the mean:

- sampling: the spread of the readings about their trend over the root of their number, or the spread of batches of
  them where that is more, for a load that pulses in step with the sensor makes readings alike;
- refreshing: a figure is up to a period old, so the ends of a span are uncertain by that;
- silence: where readings are missing, the power is known as well as its spread is small.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from regatta_runtimes.power.sensor import PowerSensor, Reading, UnknownPower

__all__ = ["MIN_PERIODS", "UNIFORM", "Level", "Span", "level", "period_seen"]

MIN_PERIODS = 20  # serving.md, Power
UNIFORM = math.sqrt(12)  # a uniform distribution's width over its standard deviation
_BATCHES = 8
_MAX_MISSING = 0.2  # of a span
_LATE_PERIODS = 5  # a sensor that gave nothing for so long at the end of a span has stopped
_MIN_CHANGES = 8
_SPARSE = 4  # times the interval: on a busy board reads come late, and that is not the sensor


@dataclass(frozen=True)
class Span:
    """The readings of a time in which the load was the same, in order, all within it."""

    start_s: float
    stop_s: float
    readings: tuple[Reading, ...]

    @property
    def duration_s(self) -> float:
        return self.stop_s - self.start_s


@dataclass(frozen=True)
class Level:
    """The mean power over a span."""

    mean_mw: float
    spread_mw: float  # standard deviation of the single readings
    error_mw: float  # standard uncertainty of the mean, without the sensor's steps
    step_mw: float
    duration_s: float
    same: bool  # every reading was the same
    changes_per_period: float


def period_seen(readings: Sequence[Reading], sensor: PowerSensor) -> float:
    """Return how often figures were renewed in seconds: what the sensor says, or longer when they repeat longer.

    Figures that stay the same show that only when they are too fine to repeat by chance: there are many changes, and
    then a quarter of the figures stands for a period or less; or there are some, and no figure ever comes back.
    """
    if len(readings) < 2:
        return sensor.period_s
    between_s = statistics.median(after.at_s - before.at_s for before, after in pairwise(readings))
    known_s = max(sensor.period_s, between_s if between_s > _SPARSE * sensor.interval_s else 0.0)
    changes = [after.at_s for before, after in pairwise(readings) if after.figure != before.figure]
    all_new = len(changes) > 2 and len({reading.figure for reading in readings}) == len(changes) + 1
    if sensor.counts or not (all_new or len(changes) > _MIN_CHANGES):
        return known_s
    held_s = sorted(after - before for before, after in pairwise(changes))[(len(changes) - 1) // 4]
    return held_s if held_s > 1.5 * max(known_s, between_s) else known_s


def level(span: Span, sensor: PowerSensor, period_s: float, fault: str | None = None) -> Level | UnknownPower:
    """Return the power over a span, or why it is not known.

    Args:
        period_s: see period_seen.
        fault: why reads failed, if some did; told along.
    """
    readings = span.readings
    refusal = _too_little(span, sensor, period_s) or _dead(span, sensor, period_s)
    if refusal is not None:
        return UnknownPower(f"sensor {sensor.name} {refusal}" + (f"; its last fault: {fault}" if fault else ""))
    powers_mw = [power for _, power in _powers(readings, sensor.counts)]
    energy_mj = _energy_mj(span, sensor.counts)
    residuals = _residuals(readings, sensor.counts)
    spread_mw = statistics.pstdev(residuals)
    held_s = (readings[0].at_s - span.start_s) + (span.stop_s - readings[-1].at_s) + _missing_s(readings, period_s)
    if sensor.counts:
        ends_mj = period_s * statistics.fmean(powers_mw) * math.sqrt(2) / UNIFORM
        sampling_mj = 0.0
    else:
        ends_mj = period_s * abs(powers_mw[-1] - powers_mw[0]) / math.sqrt(3)
        sampling_mj = span.duration_s * _sampling_mw(residuals, span.duration_s / period_s)
    error_mj = math.hypot(sampling_mj, ends_mj, held_s * spread_mw)
    return Level(
        mean_mw=energy_mj / span.duration_s,
        spread_mw=statistics.pstdev(powers_mw),
        error_mw=error_mj / span.duration_s,
        step_mw=_step_mw(powers_mw, sensor),
        duration_s=span.duration_s,
        same=len(set(powers_mw)) == 1,
        changes_per_period=sum(a != b for a, b in pairwise(powers_mw)) * period_s / span.duration_s,
    )


def _too_little(span: Span, sensor: PowerSensor, period_s: float) -> str | None:
    """Return why a span has too few readings to tell anything."""
    readings = span.readings
    told = f"gave {len(readings)} readings in {span.duration_s:.1f} s"
    if not readings:
        return f"gave no reading in {span.duration_s:.1f} s"
    if span.duration_s < MIN_PERIODS * period_s * 0.999:
        return f"{told}, under {MIN_PERIODS} of its periods of {period_s:g} s"
    silent_s = span.stop_s - readings[-1].at_s
    if silent_s > _LATE_PERIODS * max(period_s, sensor.interval_s) and silent_s > _MAX_MISSING * span.duration_s:
        return f"stopped: it {told}, and none in the last {silent_s:.1f} s"
    if len(readings) < MIN_PERIODS:
        return f"{told}, and {MIN_PERIODS} are needed"
    missing_s = _missing_s(readings, max(period_s, sensor.interval_s)) + max(0.0, silent_s - period_s)
    if missing_s > _MAX_MISSING * span.duration_s:
        return f"{told}, and was silent for {missing_s:.1f} s of it"
    return None


def _dead(span: Span, sensor: PowerSensor, period_s: float) -> str | None:
    """Return why figures that came as they should say nothing: nothing flows, or they stopped changing."""
    readings = span.readings
    if sensor.counts and readings[0].figure == readings[-1].figure:
        return f"did not count in {span.duration_s:.1f} s"
    if not sensor.counts and not any(reading.figure for reading in readings):
        return f"says 0 mW in all of {len(readings)} readings: nothing is connected to it"
    if sensor.counts:
        return None
    changes = [index for index in range(1, len(readings)) if readings[index].figure != readings[index - 1].figure]
    if len(changes) <= _MIN_CHANGES:
        return None
    frozen_s = readings[-1].at_s - readings[changes[-1]].at_s
    usual_s = (readings[changes[-1]].at_s - readings[0].at_s) / len(changes)
    if frozen_s > MIN_PERIODS * max(period_s, usual_s):
        last = f"gave {readings[-1].figure:.0f} mW for the last {frozen_s:.1f} s"
        return f"froze: it {last}, and changed every {usual_s:.2g} s before"
    return None


def _powers(readings: Sequence[Reading], counts: bool) -> list[tuple[float, float]]:
    """Return moments and milliwatts; a counter's are the means between its readings."""
    if not counts:
        return [(reading.at_s, reading.figure) for reading in readings]
    return [
        ((before.at_s + after.at_s) / 2, (after.figure - before.figure) / (after.at_s - before.at_s))
        for before, after in pairwise(readings)
    ]


def _energy_mj(span: Span, counts: bool) -> float:
    """Return the integral of the power over the span."""
    readings = span.readings
    powers = _powers(readings, counts)
    ends_mj = powers[0][1] * (readings[0].at_s - span.start_s) + powers[-1][1] * (span.stop_s - readings[-1].at_s)
    if counts:
        return ends_mj + readings[-1].figure - readings[0].figure
    trapezoid_mj = math.fsum(
        (after.at_s - before.at_s) * (before.figure + after.figure) / 2 for before, after in pairwise(readings)
    )
    return ends_mj + trapezoid_mj


def _residuals(readings: Sequence[Reading], counts: bool) -> list[float]:
    """Return the powers about the straight line through them: a ramp is no noise."""
    powers = _powers(readings, counts)
    mean_s, mean_mw = statistics.fmean(at for at, _ in powers), statistics.fmean(power for _, power in powers)
    variance = math.fsum((at - mean_s) ** 2 for at, _ in powers)
    slope = math.fsum((at - mean_s) * (power - mean_mw) for at, power in powers) / variance
    return [power - mean_mw - slope * (at - mean_s) for at, power in powers]


def _sampling_mw(residuals: Sequence[float], periods: float) -> float:
    """Return the standard error of the mean, as single readings show it or as batches of them do."""
    count = min(len(residuals), periods)
    size = len(residuals) // _BATCHES
    batches = [statistics.fmean(residuals[index * size : (index + 1) * size]) for index in range(_BATCHES)]
    return max(statistics.pstdev(residuals) / math.sqrt(count), statistics.pstdev(batches) / math.sqrt(_BATCHES - 1))


def _missing_s(readings: Sequence[Reading], period_s: float) -> float:
    """Return how long the readings were silent beyond what is usual."""
    gaps = [after.at_s - before.at_s for before, after in pairwise(readings)]
    usual_s = 2 * max(period_s, statistics.median(gaps)) if gaps else 0.0
    return sum(gap - usual_s for gap in gaps if gap > usual_s)


def _step_mw(powers_mw: Sequence[float], sensor: PowerSensor) -> float:
    """Return the sensor's step: the one that it states, or the least difference of two figures; 0 when unknown."""
    if sensor.counts:
        return 0.0  # microjoules: nothing over a second
    if sensor.step_mw is not None:
        return sensor.step_mw
    different = sorted(set(powers_mw))
    return min((after - before for before, after in pairwise(different)), default=0.0)
