"""Sensors of electrical power: found under a root, read one figure at a time. Unknown is a reason, never 0.

Order of preference, by what a figure covers: Jetson's INA3221 rails, a hwmon power1_input, Raspberry Pi 5's PMIC, RAPL.
Every sensor gives milliwatts averaged since its previous read (`PowerSensor.read_mw`); a failed read is None.
Sources: design notes on power; Documentation/hwmon/ina3221.rst, Documentation/power/powercap of the kernel.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from regatta_protocol.measurement import Power, unknown_power
from regatta_runtimes.sysfs import entries, read_number, read_text

__all__ = ["MIN_READINGS", "PowerSensor", "UnknownPower", "average_power", "find_sensor", "parse_pmic"]

MIN_READINGS = 20  # fewer sensor periods than this say nothing (serving.md, Power)
_VCGENCMD_TIMEOUT_S = 2.0
_MAX_MW = 500_000  # no board that runs this draws 500 W: such a reading is nonsense

Clock = Callable[[], float]


@dataclass(frozen=True)
class UnknownPower:
    """Why this board's power cannot be known."""

    reason: str


class PowerSensor(Protocol):
    """A source of power figures."""

    name: str
    coverage: str  # board, package, or the rails that are summed
    method: Literal["measured", "estimated"]
    period_ms: float  # reading more often gives the same figure again

    def read_mw(self) -> float | None:
        """Return milliwatts, averaged since the previous read where the sensor counts energy; None when it failed."""


class RaplSensor:
    """Intel's and AMD's running average power limit: counters of microjoules per CPU package, which wrap."""

    method: Literal["measured", "estimated"] = "measured"
    coverage = "package"
    name = "rapl"
    period_ms = 1.0  # the counter is renewed every millisecond (Intel SDM 3B, 15.10)

    def __init__(self, packages: Sequence[Path], clock: Clock = time.monotonic) -> None:
        self._packages = tuple(packages)
        self._clock = clock
        self._last: tuple[float, list[int]] | None = None

    def read_mw(self) -> float | None:
        """Return the mean since the previous read; None at the first, or when a counter could not be read."""
        energies = [read_number(package / "energy_uj") for package in self._packages]
        now = self._clock()
        known = [energy for energy in energies if energy is not None]
        before, self._last = self._last, (now, known) if len(known) == len(energies) else None
        if before is None or self._last is None or now <= before[0]:
            return None
        total_uj = 0
        for package, old, new in zip(self._packages, before[1], known, strict=True):
            if new < old:
                span = read_number(package / "max_energy_range_uj")
                if span is None:
                    return None
                new += span
            total_uj += new - old
        return _plausible(total_uj / (now - before[0]) / 1000)


class RailsSensor:
    """INA3221 monitors (Jetson): volts and amperes per rail; the board's input rail where there is one."""

    method: Literal["measured", "estimated"] = "measured"
    period_ms = 10.0  # three channels of shunt and bus at the driver's default 1.1 ms a conversion, rounded up

    def __init__(self, rails: Sequence[tuple[str, Path, Path]]) -> None:
        self.name = "ina3221"
        self._rails = tuple(rails)
        self.coverage = "+".join(label for label, _, _ in rails)

    def read_mw(self) -> float | None:
        """Return the sum over the rails now."""
        total_mw = 0.0
        for _label, volts_mv, amperes_ma in self._rails:
            voltage, current = read_number(volts_mv), read_number(amperes_ma)
            if voltage is None or current is None:
                return None
            total_mw += voltage * current / 1000
        return _plausible(total_mw)


class HwmonSensor:
    """A hwmon chip with power1_input, in microwatts."""

    method: Literal["measured", "estimated"] = "measured"
    period_ms = 100.0  # power1_average_interval is rarely given; most chips renew within this

    def __init__(self, name: str, path: Path) -> None:
        self.name = f"hwmon:{name}"
        self.coverage = f"what the chip {name} measures"
        self._path = path

    def read_mw(self) -> float | None:
        """Return the power now."""
        microwatts = read_number(self._path)
        return None if microwatts is None else _plausible(microwatts / 1000)


class PmicSensor:
    """Raspberry Pi 5's power chip, by `vcgencmd pmic_read_adc`. USB, HAT and NVMe are outside: an estimate."""

    method: Literal["measured", "estimated"] = "estimated"
    name = "pi5-pmic"
    coverage = "pmic rails, without USB, HAT and NVMe"
    period_ms = 50.0  # a call of vcgencmd takes some 20 ms

    def __init__(self, read: Callable[[], str | None]) -> None:
        self._read = read

    def read_mw(self) -> float | None:
        """Return the sum over the rails now."""
        text = self._read()
        return None if text is None else parse_pmic(text)


def parse_pmic(text: str) -> float | None:
    """Return the milliwatts in the output of `vcgencmd pmic_read_adc`; None when no rail has both figures.

    Its lines are like `3V7_WL_SW_A current(0)=0.00390625A` and `3V7_WL_SW_V volt(8)=3.69960000V`. EXT5V and BATT have
    volts only and are left out.
    """
    figures = {
        (match[1], match[2]): float(match[3])
        for match in re.finditer(r"^\s*(\w+)_([AV])\s+\w+\(\d+\)=([0-9.]+)[AV]", text, re.MULTILINE)
        if match[3].count(".") <= 1 and match[3] != "."
    }
    rails = [name for name, kind in figures if kind == "A" and (name, "V") in figures]
    if not rails:
        return None
    return _plausible(sum(figures[name, "A"] * figures[name, "V"] for name in rails) * 1000)


def find_sensor(root: Path = Path("/"), vcgencmd: Callable[[], str | None] | None = None) -> PowerSensor | UnknownPower:
    """Return the board's best sensor, or why its power cannot be known.

    Args:
        vcgencmd: what reads the Pi 5's power chip; by default the program of that name, on the real root only.
    """
    sensor = _rails(root) or _hwmon(root)
    if sensor is not None:
        return sensor
    model = read_text(root / "proc/device-tree/model") or ""
    if model.startswith("Raspberry Pi 5"):
        read = vcgencmd or (_run_vcgencmd if root == Path("/") else None)
        if read is None or parse_pmic(read() or "") is None:
            return UnknownPower("a Raspberry Pi 5 whose power chip cannot be read: install vcgencmd (raspi-utils)")
        return PmicSensor(read)
    if model.startswith("Raspberry Pi"):
        return UnknownPower(f"{model} has no power sensor (a Raspberry Pi 5 has): measure at the supply")
    return _rapl(root)


def average_power(sensor: PowerSensor, readings_mw: Sequence[float | None], inferences: int, busy_s: float) -> Power:
    """Return the power over a run of `inferences` that kept the board busy for `busy_s` seconds.

    Idle power is not taken off: the figure is what the covered part drew while inferring.
    """
    known = [reading for reading in readings_mw if reading is not None]
    if len(known) < MIN_READINGS or inferences < 1:
        failed = len(readings_mw) - len(known)
        return unknown_power(
            f"sensor {sensor.name} gave {len(known)} readings ({failed} failed) and {MIN_READINGS} are needed"
        )
    mean_mw = sum(known) / len(known)
    return Power(
        method=sensor.method,
        coverage=sensor.coverage,
        power_mw=round(mean_mw, 2),
        energy_per_inference_mj=mean_mw * busy_s / inferences,
        sensor=sensor.name,
        sensor_period_ms=sensor.period_ms,
        reason="idle power is not subtracted",
    )


def _plausible(milliwatts: float) -> float | None:
    return milliwatts if 0 <= milliwatts < _MAX_MW else None


def _rails(root: Path) -> RailsSensor | None:
    """Return the INA3221 rails: VDD_IN or POM_5V_IN alone, for they are the sum of the others; else all."""
    rails: list[tuple[str, Path, Path]] = []
    for chip in entries(root / "sys/class/hwmon", "hwmon*"):
        if read_text(chip / "name") != "ina3221":
            continue
        for label_path in entries(chip, "in*_label"):
            label = read_text(label_path) or ""
            number = label_path.name.removeprefix("in").removesuffix("_label")
            current = chip / f"curr{number}_input"
            if label in ("", "NC") or "sum of shunt" in label or not current.exists():
                continue
            rails.append((label, chip / f"in{number}_input", current))
    whole = [rail for rail in rails if rail[0] in ("VDD_IN", "POM_5V_IN")]
    chosen = whole[:1] or rails
    return RailsSensor(chosen) if chosen else None


def _hwmon(root: Path) -> HwmonSensor | None:
    for chip in entries(root / "sys/class/hwmon", "hwmon*"):
        path = chip / "power1_input"
        if read_number(path) is not None:
            return HwmonSensor(read_text(chip / "name") or chip.name, path)
    return None


def _rapl(root: Path) -> PowerSensor | UnknownPower:
    packages = [
        path
        for path in entries(root / "sys/class/powercap", "intel-rapl:*")
        if path.name.count(":") == 1 and (read_text(path / "name") or "").startswith("package")
    ]
    if not packages:
        return UnknownPower("no power sensor was found: no INA3221, hwmon power1_input, Pi 5 power chip or RAPL")
    if any(read_number(package / "energy_uj") is None for package in packages):
        return UnknownPower(f"RAPL is here, but {packages[0].name}/energy_uj cannot be read: only root may")
    return RaplSensor(packages)


def _run_vcgencmd() -> str | None:
    program = shutil.which("vcgencmd")
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, "pmic_read_adc"], capture_output=True, timeout=_VCGENCMD_TIMEOUT_S, check=False, text=True
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout[:65_536] if done.returncode == 0 else None
