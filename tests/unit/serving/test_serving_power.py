"""A window's power is a mean over the window, or unknown with a reason; energy only when the model was busy."""

from __future__ import annotations

import threading
from typing import Literal

from regatta_agent.serving.power import PowerMeter
from regatta_runtimes.power import UnknownPower


class _Steady:
    name = "steady"
    coverage = "board"
    method: Literal["measured", "estimated"] = "measured"
    period_ms = 1.0

    def __init__(self) -> None:
        self.enough = threading.Event()
        self.reads = 0

    def read_mw(self) -> float | None:
        self.reads += 1
        if self.reads > 21:
            self.enough.set()
        return 2000.0


def test_no_sensor_gives_its_reason() -> None:
    """A board without a sensor says why in every window."""
    power = PowerMeter(UnknownPower("no sensor")).take(inferences=5, busy_s=1, window_s=5)

    assert (power.method, power.reason) == ("none", "no sensor")


def test_a_window_has_its_mean_power() -> None:
    """Mean power always; energy only in a window that was mostly computing; nothing for an idle one."""
    sensor = _Steady()
    meter = PowerMeter(sensor)
    meter.start()
    assert sensor.enough.wait(20)
    partly = meter.take(inferences=10, busy_s=1.0, window_s=5.0)
    idle = meter.take(inferences=0, busy_s=0.0, window_s=5.0)
    meter.stop()

    assert (partly.power_mw, partly.energy_per_inference_mj) == (2000.0, None)
    assert "computed for 1.00 s" in (partly.reason or "")
    assert idle.method == "none"
