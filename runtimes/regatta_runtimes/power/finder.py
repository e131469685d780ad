"""Finds the board's sensors under a root, or opens the one that the user set. A probe that hangs costs its time limit.

Order of preference, by what a figure covers and how well: Jetson's rails, INA2xx monitors, the Raspberry Pi 5's power
chip, other hwmon chips with a power figure, RAPL, hwmon chips with volts and amperes, a battery.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from regatta_runtimes.errors import SensorFault
from regatta_runtimes.power.deadline import within
from regatta_runtimes.power.hwmon import find_monitors, find_other_chips, find_pairs
from regatta_runtimes.power.pmic import find_pmic, run_vcgencmd
from regatta_runtimes.power.rails import find_rails
from regatta_runtimes.power.rapl import find_rapl
from regatta_runtimes.power.sensor import PowerSensor, UnknownPower, calibrated
from regatta_runtimes.power.settings import PowerSettings
from regatta_runtimes.power.supply import find_batteries
from regatta_runtimes.power.user import command_sensor, plug_sensor
from regatta_runtimes.sysfs import read_text

__all__ = ["find_sensor", "open_sensor"]

logger = logging.getLogger(__name__)

_PROBE_S = 5.0  # a whole probe takes some milliseconds, with vcgencmd 30
_NONE = "no power sensor was found: no INA3221, INA2xx, hwmon power, Pi 5 power chip, RAPL or battery"

Family = Callable[[], list[PowerSensor]]


def find_sensor(root: Path = Path("/"), vcgencmd: Callable[[], str] | None = None) -> PowerSensor | UnknownPower:
    """Return the board's best sensor, or why its power cannot be known.

    Args:
        vcgencmd: what reads the Pi 5's power chip; by default the program of that name, on the real root only.
    """
    return _probe(root, vcgencmd, None)


def open_sensor(settings: PowerSettings, root: Path = Path("/")) -> PowerSensor | UnknownPower:
    """Return the sensor that is set, calibrated; the board's best where none is. Close it after use."""
    try:
        if settings.command is not None:
            sensor: PowerSensor | UnknownPower = command_sensor(settings.command)
        elif settings.mqtt is not None:
            sensor = plug_sensor(settings.mqtt)
        else:
            sensor = _probe(root, None, settings.sensor)
    except SensorFault as fault:
        return UnknownPower(str(fault))
    return sensor if isinstance(sensor, UnknownPower) else calibrated(sensor, settings.factor, settings.offset_mw)


def _probe(root: Path, vcgencmd: Callable[[], str] | None, name: str | None) -> PowerSensor | UnknownPower:
    try:
        return within(_PROBE_S, "the search for power sensors", lambda: _find(root, vcgencmd, name))
    except SensorFault as fault:
        return UnknownPower(str(fault))


def _find(root: Path, vcgencmd: Callable[[], str] | None, name: str | None) -> PowerSensor | UnknownPower:
    """Return the first sensor, or the one of that name."""
    reasons: list[str] = []
    found: list[str] = []
    for family in _families(root, vcgencmd):
        try:
            for sensor in family():
                if name in (None, sensor.name):
                    return sensor
                found.append(sensor.name)
        except SensorFault as fault:
            reasons.append(str(fault))
    if name is not None:
        there = f"there are {', '.join(found)}" if found else "; ".join(reasons) or "there is none at all"
        return UnknownPower(f"this board has no power sensor {name!r}: {there}")
    return UnknownPower("; ".join(reasons) or _NONE)


def _families(root: Path, vcgencmd: Callable[[], str] | None) -> Iterator[Family]:
    model = read_text(root / "proc/device-tree/model") or ""
    yield lambda: find_rails(root)
    yield lambda: find_monitors(root)
    if model.startswith("Raspberry Pi 5"):
        run = vcgencmd or (run_vcgencmd if root == Path("/") else _no_vcgencmd)
        yield lambda: find_pmic(run)
    yield lambda: find_other_chips(root)
    yield lambda: find_rapl(root)
    yield lambda: find_pairs(root)
    yield lambda: find_batteries(root)
    if model.startswith("Raspberry Pi") and not model.startswith("Raspberry Pi 5"):
        yield lambda: _nothing(f"{model} has no power sensor (a Raspberry Pi 5 has): measure at the supply")


def _no_vcgencmd() -> str:
    raise SensorFault("a recorded tree cannot run vcgencmd")


def _nothing(reason: str) -> list[PowerSensor]:
    raise SensorFault(reason)
