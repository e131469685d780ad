"""Reads a sensor on a thread of its own beside a load, and says when it fails, stops or hangs. Integrates nothing.

A read that hangs in a driver cannot be ended: the thread is left behind (a daemon), and the recorder says so from then
on. Repeated figures of a sensor that stamps its own (a smart plug) are kept once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from types import TracebackType

from regatta_runtimes.errors import CounterReset, SensorFault
from regatta_runtimes.power.level import Span
from regatta_runtimes.power.sensor import Clock, PowerSensor, Reading

__all__ = ["Recorder", "why_silent"]

logger = logging.getLogger(__name__)

_MAX_READINGS = 50_000  # a quarter of an hour at 20 ms; 6 MB


class Recorder:
    """Readings of one sensor. A context manager; leaving it ends the reading and leaves the sensor open."""

    def __init__(self, sensor: PowerSensor, clock: Clock = time.monotonic) -> None:
        self.sensor = sensor
        self._clock = clock
        self._readings: deque[Reading] = deque(maxlen=_MAX_READINGS)
        self._lock = threading.Lock()  # the thread appends, the owner takes out
        self._stop = threading.Event()
        self._reading_since_s: float | None = None
        self._fault: str | None = None
        self._thread = threading.Thread(target=self._run, name="power", daemon=True)

    def start(self) -> None:
        """Begin to read. Once."""
        self._thread.start()

    def __enter__(self) -> Recorder:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Read no more, and do not wait for a read under way."""
        self._stop.set()

    def wait(self, until_s: float) -> None:
        """Do nothing until the clock says so."""
        while (left_s := until_s - self._clock()) > 0:
            time.sleep(min(left_s, 1.0))

    def now_s(self) -> float:
        return self._clock()

    def span(self, start_s: float, stop_s: float) -> Span:
        """Return what was read between two moments."""
        with self._lock:
            readings = tuple(reading for reading in self._readings if start_s <= reading.at_s <= stop_s)
        return Span(start_s, stop_s, readings)

    def forget(self, before_s: float) -> None:
        """Drop what was read earlier."""
        with self._lock:
            while self._readings and self._readings[0].at_s < before_s:
                self._readings.popleft()

    @property
    def fault(self) -> str | None:
        """Why reads fail now, or failed last; None when none did."""
        since_s, limit_s = self._reading_since_s, self.sensor.timeout_s
        if since_s is not None and self._clock() - since_s > limit_s:
            return f"a read of {self.sensor.name} hangs: no answer within {limit_s:g} s"
        return self._fault

    @property
    def hangs(self) -> bool:
        """Whether a read is under way that takes longer than it may."""
        since_s = self._reading_since_s
        return since_s is not None and self._clock() - since_s > self.sensor.timeout_s

    def _run(self) -> None:
        while not self._stop.is_set():
            begun_s = self._reading_since_s = self._clock()
            self._read()
            self._reading_since_s = None
            self._stop.wait(max(self.sensor.interval_s / 4, begun_s + self.sensor.interval_s - self._clock()))

    def _read(self) -> None:
        try:
            reading = self.sensor.read(self._clock)
        except SensorFault as fault:
            if self._fault is None:
                logger.warning("event=power_fault sensor=%s reason=%s", self.sensor.name, fault)
            self._fault = str(fault)
            if isinstance(fault, CounterReset):
                with self._lock:
                    self._readings.clear()
            return
        with self._lock:
            if not self._readings or reading.at_s > self._readings[-1].at_s:
                self._readings.append(reading)


def why_silent(sensor: PowerSensor, limit_s: float) -> str | None:
    """Return None once the sensor gives a figure, or why it gave none within `limit_s`."""
    with Recorder(sensor) as recorder:
        deadline_s = recorder.now_s() + limit_s
        while recorder.now_s() < deadline_s:
            if recorder.span(0.0, recorder.now_s()).readings:
                return None
            recorder.wait(recorder.now_s() + 0.02)
        return recorder.fault or f"no figure came within {limit_s:g} s"
