"""A battery that the board runs on: what flows out of it while it discharges. On mains it says nothing of the board.

Source: Documentation/ABI/testing/sysfs-class-power (microvolts, microamperes, microwatts). Drivers disagree on the sign
of current_now, so the state says the direction and the figure its size.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from regatta_runtimes.errors import SensorFault
from regatta_runtimes.power.attribute import whole_number
from regatta_runtimes.power.sensor import PowerSensor, plausible, stamped
from regatta_runtimes.sysfs import entries, read_text

__all__ = ["find_batteries"]

_PERIOD_S = 2.0  # fuel gauges and ACPI batteries renew every 0.25 to 4 s, and none says; what is seen counts (recorder)


def find_batteries(root: Path) -> list[PowerSensor]:
    """Return a sensor for each battery that the board runs on now.

    Raises:
        SensorFault: when there is one and it is not discharging.
    """
    found = [
        path
        for path in entries(root / "sys/class/power_supply", "*")
        if read_text(path / "type") == "Battery"
        and read_text(path / "scope") != "Device"  # a mouse's
        and ((path / "power_now").exists() or (path / "current_now").exists())
    ]
    sensors = []
    for path in found:
        _read_mw(path)
        sensors.append(
            PowerSensor(
                name=f"battery:{path.name}",
                coverage=f"what battery {path.name} gives: the board and what hangs on it",
                method="measured",
                period_s=_PERIOD_S,
                read=stamped(partial(_read_mw, path)),
            )
        )
    return sensors


def _read_mw(battery: Path) -> float:
    state = read_text(battery / "status")
    if state != "Discharging":
        now = (state or "silent").lower()
        raise SensorFault(f"battery {battery.name} is {now}: unplug the charger to measure by it")
    power = battery / "power_now"
    if power.exists():
        microwatts = abs(whole_number(power))
        return plausible(microwatts / 1000, f"battery {battery.name}")
    picowatts = whole_number(battery / "voltage_now") * abs(whole_number(battery / "current_now"))
    return plausible(picowatts / 1e9, f"battery {battery.name}")
