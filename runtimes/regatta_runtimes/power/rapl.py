"""Intel's and AMD's running average power limit: counters of microjoules per CPU package, which wrap.

Only root may read them (CVE-2020-8694), and virtual machines have none. Source: the kernel's powercap.rst.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from regatta_runtimes.errors import CounterReset, SensorFault
from regatta_runtimes.power.attribute import whole_number
from regatta_runtimes.power.sensor import MAX_MW, Clock, PowerSensor, Reading
from regatta_runtimes.sysfs import entries, read_text

__all__ = ["find_rapl"]

_PERIOD_S = 0.001  # the counter is renewed about every millisecond (Intel SDM 3B, 15.10.2)


def find_rapl(root: Path) -> list[PowerSensor]:
    """Return one sensor over all packages, if there are any.

    Raises:
        SensorFault: when there are, and they cannot be read.
    """
    packages = [
        path
        for path in entries(root / "sys/class/powercap", "intel-rapl:*")
        if path.name.count(":") == 1 and (read_text(path / "name") or "").startswith("package")
    ]
    if not packages:
        return []
    try:
        counter = _Counter(packages)
    except SensorFault as fault:
        raise SensorFault(f"RAPL is here, but {fault}") from fault
    return [PowerSensor("rapl", "package", "measured", _PERIOD_S, counter.read, counts=True)]


class _Counter:
    """The packages' energy since the first read, over every wrap."""

    def __init__(self, packages: Sequence[Path]) -> None:
        self._paths = [package / "energy_uj" for package in packages]
        self._spans_uj = [whole_number(package / "max_energy_range_uj") for package in packages]
        self._last_uj = self._energies_uj()
        self._last_s: float | None = None
        self._total_uj = 0

    def _energies_uj(self) -> list[int]:
        energies_uj = [whole_number(path) for path in self._paths]
        for path, energy_uj, span_uj in zip(self._paths, energies_uj, self._spans_uj, strict=True):
            if not 0 <= energy_uj <= span_uj:
                raise SensorFault(f"{path} says {energy_uj} uJ, which is beyond its range of {span_uj}")
        return energies_uj

    def read(self, clock: Clock) -> Reading:
        """Return the millijoules so far.

        Raises:
            CounterReset: when a counter was set back, so that figures before and after do not join.
        """
        energies_uj, now_s = self._energies_uj(), clock()
        added_uj = sum(
            new - old if new >= old else new - old + span
            for old, new, span in zip(self._last_uj, energies_uj, self._spans_uj, strict=True)
        )
        before_s = self._last_s
        self._last_uj, self._last_s = energies_uj, now_s
        if before_s is not None and not 0 <= added_uj <= MAX_MW * 1000 * (now_s - before_s):
            raise CounterReset(f"the RAPL counter jumped by {added_uj / 1e6:.0f} J within {now_s - before_s:.3f} s")
        self._total_uj += added_uj
        return Reading(now_s, self._total_uj / 1000)
