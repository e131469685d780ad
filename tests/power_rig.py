"""Meters for tests: a power waveform is played into the files or programs that a sensor reads, as a kernel would.

Every file is replaced atomically. A meter shows a new figure once a period, with its own steps; what it read in between
is the old figure, as on a board.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from regatta_runtimes.power.finder import find_sensor
from regatta_runtimes.power.level import Span
from regatta_runtimes.power.pmic import run_vcgencmd
from regatta_runtimes.power.sensor import PowerSensor, UnknownPower
from regatta_runtimes.power.settings import CommandSettings
from regatta_runtimes.power.user import command_sensor

__all__ = ["METERS", "Meter", "Player", "Waveform", "energy_mj", "plant", "show"]

Waveform = Callable[[float], float]  # seconds since the span's start -> milliwatts
NOISE_MW = 15.0  # of every meter
RAPL_RANGE_UJ = 3_000_000  # small, so that it wraps several times in a run


def show(path: Path, text: str) -> None:
    """Replace the file's content at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.parent / f".{path.name}.new"
    new.write_text(text)
    new.replace(path)


def plant(root: Path, files: Mapping[str, str]) -> Path:
    """Write a tree."""
    for name, content in files.items():
        show(root / name, content)
    return root


@dataclass(frozen=True)
class Meter:
    """A sensor under `root` and what shows it a figure: milliwatts now, millijoules since the beginning."""

    tell: Callable[[float, float], None]
    open: Callable[[], PowerSensor | UnknownPower]


def _stepped(value: float, step: float) -> int:
    return round(round(value / step) * step)


def _files(root: Path, fixed: Mapping[str, str], tell: Callable[[float, float], Mapping[str, str]]) -> Meter:
    def show_all(power_mw: float, energy_mj: float) -> None:
        plant(root, tell(power_mw, energy_mj))

    plant(root, fixed)
    return Meter(show_all, lambda: find_sensor(root))


def _ina3221(root: Path) -> Meter:
    chip = "sys/class/hwmon/hwmon4"
    fixed = {
        f"{chip}/name": "ina3221\n",
        f"{chip}/update_interval": "20\n",
        f"{chip}/shunt1_resistor": "5000\n",
        f"{chip}/in1_label": "VDD_IN\n",
        f"{chip}/in1_input": "5000\n",
        f"{chip}/in2_label": "VDD_SOC\n",
        f"{chip}/in2_input": "5000\n",
        f"{chip}/curr2_input": "77\n",
        f"{chip}/in7_label": "sum of shunt voltages\n",
    }
    return _files(root, fixed, lambda mw, _: {f"{chip}/curr1_input": f"{_stepped(mw / 5, 8)}\n"})


def _iio(root: Path) -> Meter:
    chip = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    fixed = {
        f"{chip}/rail_name_0": "POM_5V_IN\n",
        f"{chip}/rail_name_1": "POM_5V_GPU\n",
        f"{chip}/in_power1_input": "9",
    }
    return _files(root, fixed, lambda mw, _: {f"{chip}/in_power0_input": f"{round(mw)}\n"})


def _monitor(root: Path) -> Meter:
    chip = "sys/class/hwmon/hwmon2"
    fixed = {f"{chip}/name": "ina226\n", f"{chip}/update_interval": "36\n"}
    return _files(root, fixed, lambda mw, _: {f"{chip}/power1_input": f"{_stepped(mw * 1000, 25_000)}\n"})


def _acpi(root: Path) -> Meter:
    chip = "sys/class/hwmon/hwmon0"
    fixed = {f"{chip}/name": "power_meter\n", f"{chip}/power1_average_interval": "1000\n"}
    return _files(root, fixed, lambda mw, _: {f"{chip}/power1_average": f"{_stepped(mw * 1000, 20_000)}\n"})


def _pairs(root: Path) -> Meter:
    chip = "sys/class/hwmon/hwmon0"
    fixed = {f"{chip}/name": "ltc2992\n", f"{chip}/in1_input": "12000\n"}
    return _files(root, fixed, lambda mw, _: {f"{chip}/curr1_input": f"{round(mw / 12)}\n"})


def _rapl(root: Path) -> Meter:
    zone = "sys/class/powercap/intel-rapl:0"
    fixed = {f"{zone}/name": "package-0\n", f"{zone}/max_energy_range_uj": f"{RAPL_RANGE_UJ}\n"}
    return _files(root, fixed, lambda _, mj: {f"{zone}/energy_uj": f"{_stepped(mj * 1000, 61) % RAPL_RANGE_UJ}\n"})


def _battery(root: Path) -> Meter:
    battery = "sys/class/power_supply/BAT0"
    fixed = {
        f"{battery}/type": "Battery\n",
        f"{battery}/status": "Discharging\n",
        f"{battery}/voltage_now": "7400000\n",
    }
    return _files(root, fixed, lambda mw, _: {f"{battery}/current_now": f"{-_stepped(mw / 7.4 * 1000, 1000)}\n"})


def _pmic(root: Path) -> Meter:
    """A vcgencmd on PATH (the test puts root/bin there)."""
    plant(root, {"proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0"})
    _program(root / "bin/vcgencmd", f'[ "$1" = pmic_read_adc ] && cat {root}/adc')

    def tell(power_mw: float, _energy_mj: float) -> None:
        amperes = (power_mw / 1000 - 0.5 * 1.1) / 3.3
        lines = [
            f"   3V3_SYS_A current(1)={amperes:.8f}A",
            "   1V1_SYS_A current(2)=0.50000000A",
            "     EXT5V_V volt(24)=5.14922000V",
            "   3V3_SYS_V volt(9)=3.30000000V",
            "   1V1_SYS_V volt(10)=1.10000000V",
        ]
        show(root / "adc", "\n".join(lines) + "\n")

    return Meter(tell, lambda: find_sensor(root, run_vcgencmd))


def _command(root: Path) -> Meter:
    program = _program(root / "bin/watts", f"cat {root}/watts")
    settings = CommandSettings(run=(str(program),), period_s=0.1)
    return Meter(lambda mw, _: show(root / "watts", f"{mw / 1000:.2f}\n"), lambda: command_sensor(settings))


def _program(path: Path, body: str) -> Path:
    show(path, f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


METERS: Mapping[str, Callable[[Path], Meter]] = {
    "ina3221": _ina3221,
    "ina3221-iio": _iio,
    "ina226": _monitor,
    "power_meter": _acpi,
    "pairs": _pairs,
    "rapl": _rapl,
    "battery": _battery,
    "pi5-pmic": _pmic,
    "command": _command,
}


def energy_mj(waveform: Waveform, duration_s: float) -> float:
    """Return the waveform's true energy, by ten thousand steps."""
    step_s = duration_s / 10_000
    return sum(waveform((index + 0.5) * step_s) for index in range(10_000)) * step_s


class Player:
    """Plays spans into a meter one after another, and reads the sensor meanwhile. Its clock is its own."""

    def __init__(self, meter: Meter, chance: random.Random) -> None:
        meter.tell(1000.0, 0.0)
        found = meter.open()
        assert isinstance(found, PowerSensor), found
        self.sensor = found
        self._meter = meter
        self._chance = chance
        self._renew_s = 0.004 if found.counts else found.period_s
        self._renewed_s = -chance.uniform(0, self._renew_s)
        self._true_mj = 0.0
        self._now_s = 0.0

    def play(self, waveform: Waveform, duration_s: float) -> Span:
        """Return the readings of a span while the waveform runs; they come at the sensor's interval, which jitters."""
        begin_s, read_s = self._now_s, self._now_s
        readings = []
        while (read_s := read_s + self.sensor.interval_s * self._chance.uniform(0.9, 1.2)) < begin_s + duration_s:
            while self._renewed_s + self._renew_s <= read_s:
                self._renew(waveform, begin_s)
            readings.append(self.sensor.read(lambda at_s=read_s: at_s))  # type: ignore[misc]  # a Clock all the same
        self._now_s = begin_s + duration_s
        return Span(begin_s, self._now_s, tuple(readings))

    def _renew(self, waveform: Waveform, begin_s: float) -> None:
        before_s, self._renewed_s = self._renewed_s, self._renewed_s + self._renew_s
        middle_mw = waveform(max(0.0, (before_s + self._renewed_s) / 2 - begin_s))
        self._true_mj += middle_mw * self._renew_s
        shown_mw = waveform(max(0.0, self._renewed_s - begin_s)) + self._chance.gauss(0, NOISE_MW)
        self._meter.tell(shown_mw, self._true_mj)
