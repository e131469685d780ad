"""What the board is: model, CPU, memory, accelerators, temperature, read from /proc and /sys under a root. No numpy.

A fact that cannot be found out is None. Accelerators are found by their devices, not by installed libraries.
"""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

from regatta_protocol.measurement import BoardFacts
from regatta_runtimes.power import UnknownPower, find_sensor
from regatta_runtimes.sysfs import entries, read_number, read_text

__all__ = ["probe_board"]

# Coral USB shows the first id until its firmware is loaded on first use, then the second (runtimes.md)
_CORAL_USB = {("1a6e", "089a"), ("18d1", "9302")}
_DEVICES = {"dev/galcore": "imx8mp-npu", "dev/ethosu0": "ethosu", "dev/accel/accel0": "accel"}
_COMPATIBLE = {"nvidia,tegra": "jetson"}


def probe_board(root: Path = Path("/")) -> BoardFacts:
    """Return what the board under `root` is."""
    cpuinfo = read_text(root / "proc/cpuinfo") or ""
    sensor = find_sensor(root)
    own = root == Path("/")
    return BoardFacts(
        model=_model(root),
        machine=platform.machine() if own else read_text(root / "proc/sys/kernel/arch"),
        cpu=_cpu(cpuinfo),
        cores=_cores(cpuinfo, own),
        memory_bytes=_memory(root),
        kernel=read_text(root / "proc/sys/kernel/osrelease"),
        accelerators=_accelerators(root),
        power_sensor=None if isinstance(sensor, UnknownPower) else sensor.name,
        temperature_c=_temperature(root),
    )


def _model(root: Path) -> str | None:
    """Return the board's name: of the device tree, or of the firmware on PCs."""
    for path in ("proc/device-tree/model", "sys/firmware/devicetree/base/model"):
        if model := read_text(root / path):
            return model
    parts = [read_text(root / "sys/class/dmi/id" / name) for name in ("sys_vendor", "product_name")]
    return " ".join(part for part in parts if part) or None


def _cpu(cpuinfo: str) -> str | None:
    """Return the CPU's name on x86, or implementer and part of the first ARM core."""
    if match := re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE):
        return match[1].strip()
    implementer = re.search(r"^CPU implementer\s*:\s*(\S+)$", cpuinfo, re.MULTILINE)
    part = re.search(r"^CPU part\s*:\s*(\S+)$", cpuinfo, re.MULTILINE)
    return f"ARM implementer {implementer[1]} part {part[1]}" if implementer and part else None


def _cores(cpuinfo: str, own: bool) -> int | None:
    """Return how many cores this process may use; of a recorded tree, how many it lists."""
    if own:
        return len(os.sched_getaffinity(0))
    return len(re.findall(r"^processor\s*:", cpuinfo, re.MULTILINE)) or None


def _memory(root: Path) -> int | None:
    match = re.search(r"^MemTotal:\s*(\d+) kB", read_text(root / "proc/meminfo") or "", re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def _accelerators(root: Path) -> tuple[str, ...]:
    """Return the names of the accelerators whose devices are there."""
    found: set[str] = set()
    for device in entries(root / "sys/bus/usb/devices", "*"):
        if (read_text(device / "idVendor"), read_text(device / "idProduct")) in _CORAL_USB:
            found.add("coral-usb")
    if any(entries(root / "sys/class/apex", "apex_*")):
        found.add("coral-pcie")
    compatible = read_text(root / "proc/device-tree/compatible") or ""
    found |= {name for text, name in _COMPATIBLE.items() if text in compatible}
    if (root / "etc/nv_tegra_release").exists():
        found.add("jetson")
    found |= {name for path, name in _DEVICES.items() if (root / path).exists()}
    if any(entries(root / "sys/class/fpga_manager", "fpga*")):
        found.add("fpga")
    return tuple(sorted(found))


def _temperature(root: Path) -> float | None:
    """Return the hottest plausible thermal zone in degrees Celsius."""
    zones = [read_number(path) for path in entries(root / "sys/class/thermal", "thermal_zone*/temp")]
    plausible = [zone / 1000 for zone in zones if zone is not None and -40_000 < zone < 150_000]
    return max(plausible, default=None)
