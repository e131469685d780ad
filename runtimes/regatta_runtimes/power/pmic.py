"""Raspberry Pi 5's power chip, by `vcgencmd pmic_read_adc`: volts and amperes of twelve rails.

USB, HAT and NVMe are outside, and so are the losses of the supply: an estimate, which a meter at the plug calibrates
(docs/power.md). Earlier boards have no such chip.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

from regatta_runtimes.errors import SensorFault
from regatta_runtimes.power.process import output_of
from regatta_runtimes.power.sensor import PowerSensor, plausible, stamped

__all__ = ["find_pmic", "parse_pmic", "run_vcgencmd"]

_PERIOD_S = 0.05  # a call of vcgencmd takes some 20 ms
_TIMEOUT_S = 2.0


def run_vcgencmd() -> str:
    """Return what vcgencmd says of the power chip.

    Raises:
        SensorFault: when it is not installed, or fails, or hangs.
    """
    return output_of(["vcgencmd", "pmic_read_adc"], _TIMEOUT_S)


def find_pmic(run: Callable[[], str]) -> list[PowerSensor]:
    """Return the sensor of a Raspberry Pi 5.

    Raises:
        SensorFault: when the chip cannot be read.
    """
    try:
        parse_pmic(run())
    except SensorFault as fault:
        raise SensorFault(
            f"a Raspberry Pi 5 whose power chip cannot be read: {fault}; install vcgencmd (raspi-utils) and give this "
            "user the group video"
        ) from fault
    coverage = "pmic rails, without USB, HAT and NVMe"
    read = stamped(partial(_read_mw, run))
    return [PowerSensor("pi5-pmic", coverage, "estimated", _PERIOD_S, read, timeout_s=2 * _TIMEOUT_S)]


def _read_mw(run: Callable[[], str]) -> float:
    return parse_pmic(run())


def parse_pmic(text: str) -> float:
    """Return the milliwatts in the output of `vcgencmd pmic_read_adc`.

    Its lines are like `3V7_WL_SW_A current(0)=0.00390625A` and `3V7_WL_SW_V volt(8)=3.69960000V`. EXT5V and BATT have
    volts only and are left out.

    Raises:
        SensorFault: when no rail has both figures.
    """
    figures = {
        (match[1], match[2]): float(match[3])
        for match in re.finditer(
            r"^\s*(\w+)_([AV])\s+\w+\(\d+\)=(\d{1,9}\.?\d{0,20})[AV]", text, re.MULTILINE | re.ASCII
        )
    }
    rails = [name for name, kind in figures if kind == "A" and (name, "V") in figures]
    if not rails:
        raise SensorFault(f"vcgencmd names no rail with volts and amperes: it says {text.strip()[:80]!r}")
    return plausible(sum(figures[name, "A"] * figures[name, "V"] for name in rails) * 1000, "the power chip")
