"""The board's power while a worker serves: the sensor is sought and read on threads of its own, for it may hang.

Figures are integrated over the telemetry windows, and over several of them where the sensor is slow (20 of its periods
are needed). Energy per inference is that above idle, as the race measures it: idle is what was drawn over the newest
quiet time, in which this worker inferred nothing, or what the race measured. A sensor of the whole board cannot tell
two models apart that are served at the same time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from regatta_protocol.values import Power, unknown_power
from regatta_runtimes.power.energy import Idle, Run, energy_of, idle_of
from regatta_runtimes.power.level import MIN_PERIODS, level, period_seen
from regatta_runtimes.power.recorder import Recorder
from regatta_runtimes.power.sensor import Clock, PowerSensor, UnknownPower

__all__ = ["PowerMeter"]

logger = logging.getLogger(__name__)

_LONGEST_S = 3600.0  # a time without a figure of 20 periods begins anew: the sensor says nothing
_RACE_SIGMA = 0.05  # of the idle power that a race measured: boards warm up and clocks change after it


@dataclass(frozen=True)
class _Measuring:
    """The time that runs, since the last figure."""

    start_s: float
    inferences: int = 0


class PowerMeter:
    """What the board draws, window by window."""

    def __init__(
        self,
        open_sensor: Callable[[], PowerSensor | UnknownPower],
        race: Power | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        """
        Args:
            open_sensor: called once, by `start`, on another thread.
            race: the power of this candidate in its race.
        """
        self._open_sensor = open_sensor
        self._clock = clock
        self._recorder: Recorder | None = None
        self._unknown = "the power sensor is being looked for"
        self._idle = _idle_of_race(race)
        self._idle_from = "the race"
        self._measuring = _Measuring(clock())
        self._stopped = threading.Event()

    def start(self) -> None:
        """Look for the sensor, and begin to read it."""
        threading.Thread(target=self._open, name="power-sensor", daemon=True).start()

    def stop(self) -> None:
        """Read no more."""
        self._stopped.set()
        recorder = self._recorder
        if recorder is not None:
            recorder.stop()
            recorder.sensor.close()

    def _open(self) -> None:
        sensor = self._open_sensor()
        if isinstance(sensor, UnknownPower):
            self._unknown = sensor.reason
            return
        recorder = Recorder(sensor, self._clock)
        recorder.start()
        self._recorder = recorder
        if self._stopped.is_set():
            self.stop()

    def take(self, *, inferences: int) -> Power:
        """Return the power since the last figure, or why it is unknown; called at the end of each window.

        Args:
            inferences: of this window.
        """
        recorder, now_s = self._recorder, self._clock()
        if recorder is None:
            self._measuring = _Measuring(now_s)
            return unknown_power(self._unknown)
        since = _Measuring(self._measuring.start_s, self._measuring.inferences + inferences)
        span = recorder.span(since.start_s, now_s)
        period_s = period_seen(span.readings, recorder.sensor)
        found = level(span, recorder.sensor, period_s, recorder.fault)
        enough = span.duration_s >= MIN_PERIODS * max(period_s, recorder.sensor.interval_s)
        if enough or span.duration_s > _LONGEST_S:
            self._measuring = _Measuring(now_s)
            recorder.forget(now_s)
        else:
            self._measuring = since
        if isinstance(found, UnknownPower):
            return unknown_power(found.reason)
        if since.inferences == 0:
            self._idle, self._idle_from = idle_of(found), "the last quiet time"
            return unknown_power("nothing was inferred in this window")
        power = energy_of([Run(found, since.inferences)], self._idle, recorder.sensor, period_s)
        if self._idle is None:
            return power
        told = f"idle power is from {self._idle_from}, so its drift since then is not in the uncertainty"
        return replace(power, reason="; ".join(filter(None, (power.reason, told))))


def _idle_of_race(race: Power | None) -> Idle | None:
    if race is None or race.idle_power_mw is None:
        return None
    sigma_mw = race.idle_power_mw * _RACE_SIGMA
    return Idle(race.idle_power_mw, sigma_mw, sigma_mw)
