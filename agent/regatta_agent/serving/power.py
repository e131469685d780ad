"""The board's power while a worker serves: read on a thread of its own, for a sensor may be a slow program.

A window's figure is the mean over the window. Energy per inference is told only when the model was computing for most
of it: over an idle window it would mostly be the energy of waiting.
"""

from __future__ import annotations

import threading
from collections import deque

from regatta_protocol.measurement import Power, unknown_power
from regatta_runtimes.power import PowerSensor, UnknownPower, average_power

__all__ = ["PowerMeter"]

_PERIOD_S = 0.2  # 25 readings in a window of 5 s, above the 20 that a figure needs; a read costs about 50 us
_MAX_READINGS = 18_000  # an hour's
_BUSY_SHARE = 0.8


class PowerMeter:
    """Readings since the last window."""

    def __init__(self, sensor: PowerSensor | UnknownPower) -> None:
        self._sensor = sensor
        self._readings_mw: deque[float | None] = deque(maxlen=_MAX_READINGS)
        self._stop = threading.Event()

    def start(self) -> None:
        """Begin to read, if there is a sensor."""
        if not isinstance(self._sensor, UnknownPower):
            threading.Thread(target=self._read, args=(self._sensor,), name="power", daemon=True).start()

    def stop(self) -> None:
        """Read no more."""
        self._stop.set()

    def _read(self, sensor: PowerSensor) -> None:
        while not self._stop.wait(max(_PERIOD_S, sensor.period_ms / 1000)):
            self._readings_mw.append(sensor.read_mw())

    def take(self, *, inferences: int, busy_s: float, window_s: float) -> Power:
        """Return the power since the last call, or why it is unknown."""
        if isinstance(self._sensor, UnknownPower):
            return unknown_power(self._sensor.reason)
        readings = [self._readings_mw.popleft() for _ in range(len(self._readings_mw))]
        if inferences == 0:
            return unknown_power("nothing was inferred in this window")
        power = average_power(self._sensor, readings, inferences, busy_s)
        if power.method == "none" or busy_s >= _BUSY_SHARE * window_s:
            return power
        reason = f"the model computed for {busy_s:.2f} s of {window_s:.2f} s, so energy per inference is not told"
        return power.model_copy(update={"energy_per_inference_mj": None, "reason": reason})
