"""What a power sensor is: one read function and what is known of its figures. Reads no files and keeps no time.

A read gives milliwatts, or the millijoules of a counter (`counts`), stamped with monotonic time; one that fails raises
SensorFault with the reason. A figure is never made up: no read gives 0 for a failure.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from regatta_runtimes.errors import SensorFault

__all__ = ["MAX_MW", "Clock", "PowerSensor", "Reading", "UnknownPower", "calibrated", "plausible", "stamped"]

MAX_MW = 5_000_000.0  # a wall socket gives 3.7 kW: what is over this is nonsense
_MIN_INTERVAL_S = 0.02  # a read of one I2C rail takes 0.3 ms at 400 kHz; more often would load what is measured

Clock = Callable[[], float]  # monotonic seconds


class Reading(NamedTuple):
    """One figure: milliwatts at that moment, or millijoules since some moment."""

    at_s: float
    figure: float


@dataclass(frozen=True)
class UnknownPower:
    """Why power cannot be known."""

    reason: str


@dataclass(frozen=True)
class PowerSensor:
    """A source of power figures."""

    name: str
    coverage: str  # board, package, or the rails that are summed
    method: Literal["measured", "estimated"]
    period_s: float  # how often the figure is renewed: reading more often gives the same one again
    read: Callable[[Clock], Reading]  # raises SensorFault
    counts: bool = False  # figures are millijoules of a counter, which is exact over any time
    step_mw: float | None = None  # the least difference of two figures, where it is known
    timeout_s: float = 2.0  # a read that takes longer hangs; the slowest known, vcgencmd, takes 20 ms
    close: Callable[[], None] = lambda: None

    @property
    def interval_s(self) -> float:
        """How often to read: twice a period shows when a figure is renewed."""
        return max(_MIN_INTERVAL_S, self.period_s / 2)


def plausible(milliwatts: float, what: str) -> float:
    """Return the figure.

    Raises:
        SensorFault: when no board draws so much, or it is negative or no number.
    """
    if not math.isfinite(milliwatts) or not 0 <= milliwatts <= MAX_MW:
        raise SensorFault(f"{what} says {milliwatts:g} mW, which no board draws")
    return milliwatts


def stamped(figure: Callable[[], float]) -> Callable[[Clock], Reading]:
    """Return a read function that gives `figure` the middle of the time that it took."""

    def read(clock: Clock) -> Reading:
        begun = clock()
        value = figure()
        return Reading((begun + clock()) / 2, value)

    return read


def calibrated(sensor: PowerSensor, factor: float, offset_mw: float) -> PowerSensor:
    """Return the sensor with factor · figure + offset in place of its figures."""
    if (factor, offset_mw) == (1.0, 0.0):
        return sensor
    raw = sensor.read

    def read(clock: Clock) -> Reading:
        at_s, figure = raw(clock)
        return Reading(at_s, factor * figure + offset_mw * (at_s if sensor.counts else 1.0))

    step_mw = None if sensor.step_mw is None else sensor.step_mw * factor
    coverage = f"{sensor.coverage}, calibrated: {factor:g} times, {offset_mw:+g} mW"
    return replace(sensor, read=read, step_mw=step_mw, coverage=coverage)
