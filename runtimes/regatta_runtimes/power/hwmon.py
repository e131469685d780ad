"""Chips of hwmon that know their power: INA219, INA226, INA260 and their kin, ACPI power meters, anything else.

Found by name, never by hwmon number, for that changes from boot to boot. Microwatts of power1_input or power1_average,
or volts times amperes of the channels that have both. Chips of a battery are supply.py's, those of Jetson rails.py's.
Sources: Documentation/hwmon/{sysfs-interface,ina2xx,ina238,acpi_power_meter}.rst.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from regatta_runtimes.power.attribute import whole_number
from regatta_runtimes.power.sensor import PowerSensor, plausible, stamped
from regatta_runtimes.sysfs import entries, read_number, read_text

__all__ = ["find_monitors", "find_other_chips", "find_pairs"]

_MONITORS = tuple(f"ina{number}" for number in (209, 219, 220, 226, 228, 230, 231, 233, 234, 237, 238, 260))
_GRAPHICS = ("amdgpu", "i915", "nouveau", "radeon", "xe")  # the card alone: of no use for inference on the processor
_PERIOD_S = 0.1  # where neither the chip nor its driver says: most renew within this
_MAX_PAIRS = 32


@dataclass(frozen=True)
class _Chip:
    name: str
    path: Path
    title: str  # the name, and the device where two chips have the same


def find_monitors(root: Path) -> list[PowerSensor]:
    """Return the INA2xx monitors: put there to measure, so they come before what else there is."""
    return [sensor for chip in _chips(root) if chip.name in _MONITORS for sensor in _by_power(chip) or _by_pairs(chip)]


def find_other_chips(root: Path) -> list[PowerSensor]:
    """Return the other chips that tell their power."""
    others = [chip for chip in _chips(root) if chip.name not in (*_MONITORS, *_GRAPHICS, "ina3221")]
    return [sensor for chip in others for sensor in _by_power(chip)]


def find_pairs(root: Path) -> list[PowerSensor]:
    """Return the chips that tell volts and amperes only."""
    others = [chip for chip in _chips(root) if chip.name not in (*_MONITORS, "ina3221")]
    return [sensor for chip in others if not _by_power(chip) for sensor in _by_pairs(chip)]


def _chips(root: Path) -> list[_Chip]:
    """Return the chips in the order of name and device."""
    batteries = {path.name.replace("-", "_") for path in entries(root / "sys/class/power_supply", "*")}
    found = []
    for path in entries(root / "sys/class/hwmon", "hwmon*"):
        name = read_text(path / "name")
        if name is not None and name not in batteries:
            found.append((name, (path / "device").resolve().name, path))
    names = [name for name, _, _ in found]
    return [
        _Chip(name, path, f"{name}@{device}" if names.count(name) > 1 else name)
        for name, device, path in sorted(found, key=lambda each: each[:2])
    ]


def _by_power(chip: _Chip) -> list[PowerSensor]:
    for figure, interval in (("power1_input", "update_interval"), ("power1_average", "power1_average_interval")):
        path = chip.path / figure
        if path.exists():
            return [_sensor(chip, read_number(chip.path / interval), partial(_power_mw, chip.title, path))]
    return []


def _by_pairs(chip: _Chip) -> list[PowerSensor]:
    pairs = []
    for amperes in islice(entries(chip.path, "curr*_input"), _MAX_PAIRS):
        volts = chip.path / amperes.name.replace("curr", "in")
        label = read_text(chip.path / amperes.name.replace("_input", "_label"))
        if volts.exists() and label != "NC":
            pairs.append((volts, amperes))
    if not pairs:
        return []
    return [_sensor(chip, read_number(chip.path / "update_interval"), partial(_pairs_mw, chip.title, pairs))]


def _sensor(chip: _Chip, renewed_ms: int | None, read_mw: partial[float]) -> PowerSensor:
    return PowerSensor(
        name=f"hwmon:{chip.title}",
        coverage="the whole machine" if chip.name == "power_meter" else f"what the chip {chip.title} measures",
        method="measured",
        period_s=renewed_ms / 1000 if renewed_ms and 0 < renewed_ms < 3_600_000 else _PERIOD_S,
        read=stamped(read_mw),
    )


def _power_mw(name: str, microwatts: Path) -> float:
    return plausible(whole_number(microwatts) / 1000, f"chip {name}")


def _pairs_mw(name: str, pairs: Sequence[tuple[Path, Path]]) -> float:
    return plausible(sum(whole_number(mv) * whole_number(ma) / 1000 for mv, ma in pairs), f"chip {name}")
