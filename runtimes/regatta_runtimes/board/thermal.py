"""How hot the board is, and whether heat or low voltage slows it down now. Cheap enough to ask between race rounds.

A board tells of throttling by one or more of these; `throttled` is None when it has none of them:
- cooling devices that slow a processor down (cpufreq-*, devfreq-*, Processor, Jetson's *-throttle-alert): state above 0
- Raspberry Pi: hwmon rpi_volt, in0_lcrit_alarm: the supply is below 4.63 V, and the firmware lowers the clock. Its
  thermal limit shows only in vcgencmd: sysfs' get_throttled is deprecated and writes a warning into the kernel's log.
- counters, by their edges between two reads: x86's thermal_throttle, Jetson's soctherm oc*_event_cnt

The processor's frequency is no sign: governors lower it for want of work.
Sources: serving.md, Power; the kernel's drivers/hwmon/raspberrypi-hwmon.c and Documentation/driver-api/thermal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from regatta_runtimes.sysfs import entries, read_number, read_text

__all__ = ["Heat", "HeatReader", "frequency_share"]

_SLOWING = ("cpufreq-", "thermal-cpufreq-", "cpuidle-", "thermal-idle-", "devfreq-", "thermal-devfreq-", "Processor")
_CPU_CHIPS = ("coretemp", "cpu_thermal", "k10temp", "zenpower")  # hwmon chips where no thermal zone may be
_MAX_FILES = 64  # per kind: a read of one takes some 10 us, so that all stay below a millisecond or two
_CORES = 16  # whose throttle counters are read


@dataclass(frozen=True)
class Heat:
    """One reading: the hottest place in degrees Celsius, and whether the board slows itself down."""

    temperature_c: float | None
    throttled: bool | None


class HeatReader:
    """Finds the board's sensors once, and reads them as often as asked.

    The counters' edges are counted from this object's making, then from read to read: make it where the work begins.
    """

    def __init__(self, root: Path = Path("/"), temperatures: Iterable[str] = ()) -> None:
        """Find the sensors under `root`; `temperatures` are more patterns of files in millidegrees."""
        patterns = ("sys/class/thermal/thermal_zone*/temp", "sys/class/apex/apex_*/temp", *temperatures)
        zones = [path for pattern in patterns for path in entries(root, pattern)]
        chips = [(chip, read_text(chip / "name")) for chip in entries(root / "sys/class/hwmon", "hwmon*")]
        zones += [path for chip, name in chips if name in _CPU_CHIPS for path in entries(chip, "temp*_input")]
        self._zones = zones[:_MAX_FILES]
        self._states = [
            device / "cur_state"
            for device in entries(root / "sys/class/thermal", "cooling_device*")
            if _slows(read_text(device / "type"))
        ][:_MAX_FILES]
        self._states += [chip / "in0_lcrit_alarm" for chip, name in chips if name == "rpi_volt"]
        self._counters = _counters(root, chips)[:_MAX_FILES]
        self._counts = [read_number(path) for path in self._counters]

    def read(self) -> Heat:
        """Return the temperature and throttling now; never raises."""
        celsius = [number / 1000 for path in self._zones if (number := read_number(path)) is not None]
        plausible = [one for one in celsius if -40 < one < 150]
        states = [number > 0 for path in self._states if (number := read_number(path)) is not None]
        before, self._counts = self._counts, [read_number(path) for path in self._counters]
        pairs = zip(before, self._counts, strict=True)
        edges = [new > old for old, new in pairs if old is not None and new is not None]
        signs = states + edges
        return Heat(max(plausible, default=None), any(signs) if signs else None)


def frequency_share(root: Path = Path("/")) -> float | None:
    """Return the clock as a share of its maximum, averaged over the processors: a hint for a person only."""
    shares = []
    for policy in entries(root / "sys/devices/system/cpu/cpufreq", "policy*"):
        now, most = read_number(policy / "scaling_cur_freq"), read_number(policy / "cpuinfo_max_freq")
        if now is not None and most is not None and 0 < now <= 2 * most:
            shares.append(now / most)
    return sum(shares) / len(shares) if shares else None


def _slows(kind: str | None) -> bool:
    """Return whether a cooling device slows a processor down, as a fan does not."""
    return kind is not None and (kind.startswith(_SLOWING) or kind.endswith("-throttle-alert"))


def _counters(root: Path, chips: Sequence[tuple[Path, str | None]]) -> list[Path]:
    cores = entries(root / "sys/devices/system/cpu", "cpu[0-9]*/thermal_throttle")[:_CORES]
    counters = [core / "core_throttle_count" for core in cores]
    counters += [core / "package_throttle_count" for core in cores[:1]]
    return counters + [path for chip, name in chips if name == "soctherm_oc" for path in entries(chip, "oc*_event_cnt")]
