"""Jetson's INA3221 monitors: volts and amperes per rail, by hwmon (JetPack 5 and later) or iio (JetPack 4).

The board's input rail counts alone where there is one, for it holds the others; else the rails are summed. The carrier
board's own supply is outside. Sources: Documentation/hwmon/ina3221.rst; NVIDIA's ina3221x driver of L4T 32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from regatta_runtimes.power.attribute import whole_number
from regatta_runtimes.power.sensor import PowerSensor, plausible, stamped
from regatta_runtimes.sysfs import entries, read_number, read_text

__all__ = ["find_rails"]

_WHOLE = ("VDD_IN", "POM_5V_IN")
_NO_RAIL = ("NC", "sum of shunt voltages")  # a channel that is not connected; a sum that the chip makes
_PERIOD_S = 0.01  # six conversions of 1.1 ms, the chip's default, rounded up
_SHUNT_STEP_UV = 40  # INA3221 datasheet, 7.3: the least significant bit of the shunt voltage
_BUS_V = 5.0  # of the rails that carry the board


@dataclass(frozen=True)
class _Rail:
    label: str
    read_mw: Callable[[], float]
    period_s: float = _PERIOD_S
    step_mw: float | None = None


def find_rails(root: Path) -> list[PowerSensor]:
    """Return one sensor over the rails of all monitors, if there are any."""
    rails = _hwmon_rails(root) or _iio_rails(root)
    chosen = [rail for rail in rails if rail.label in _WHOLE][:1] or rails
    if not chosen:
        return []
    steps = [rail.step_mw for rail in chosen]
    return [
        PowerSensor(
            name="ina3221",
            coverage="+".join(rail.label for rail in chosen),
            method="measured",
            period_s=max(rail.period_s for rail in chosen),
            read=stamped(partial(_sum_mw, chosen)),
            step_mw=max((step for step in steps if step is not None), default=None),
        )
    ]


def _sum_mw(rails: Sequence[_Rail]) -> float:
    return sum(rail.read_mw() for rail in rails)


def _is_rail(label: str | None) -> bool:
    return bool(label) and not any(text in str(label) for text in _NO_RAIL[1:]) and label != _NO_RAIL[0]


def _hwmon_rails(root: Path) -> list[_Rail]:
    rails = []
    for chip in entries(root / "sys/class/hwmon", "hwmon*"):
        if read_text(chip / "name") != "ina3221":
            continue
        renewed_ms = read_number(chip / "update_interval")  # of all its channels, with averaging
        period_s = max(_PERIOD_S, (renewed_ms or 0) / 1000)
        for label_path in entries(chip, "in*_label"):
            label = read_text(label_path)
            number = label_path.name.removeprefix("in").removesuffix("_label")
            volts, amperes = chip / f"in{number}_input", chip / f"curr{number}_input"
            if label is not None and _is_rail(label) and amperes.exists():
                resistor_uohm = read_number(chip / f"shunt{number}_resistor")
                step_mw = _SHUNT_STEP_UV / resistor_uohm * 1000 * _BUS_V if resistor_uohm else None
                rails.append(_Rail(label, partial(_product_mw, label, volts, amperes), period_s, step_mw))
    return rails


def _product_mw(label: str, volts_mv: Path, amperes_ma: Path) -> float:
    return plausible(whole_number(volts_mv) * whole_number(amperes_ma) / 1000, f"rail {label}")


def _iio_rails(root: Path) -> list[_Rail]:
    rails = []
    for chip in entries(root / "sys/bus/i2c/drivers/ina3221x", "*/iio?device*"):
        for name_path in entries(chip, "rail_name_*"):
            label = read_text(name_path)
            power = chip / f"in_power{name_path.name.removeprefix('rail_name_')}_input"
            if label is not None and _is_rail(label) and power.exists():
                rails.append(_Rail(label, partial(_power_mw, label, power)))
    return rails


def _power_mw(label: str, milliwatts: Path) -> float:
    return plausible(whole_number(milliwatts), f"rail {label}")
