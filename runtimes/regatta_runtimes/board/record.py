"""Records the board as a text: the files that probes read, and nothing else, so that a user can send it in.

Only paths of PATTERNS are recorded, and of /proc/cpuinfo and /proc/meminfo only the lines that probes use: a Raspberry
Pi's cpuinfo holds its serial number. No host name, address, serial number, or content of a library. Bounded in files
and bytes. A line is one of

    PATH = "TEXT"           a file, its text as JSON
    PATH:                   a file, its lines below and indented
    PATH -> TARGET          a symbolic link
    PATH [N bytes]          a library of that size, without its content
    PATH [node]             a device node
    PATH/                   a folder
    # TEXT                  a comment

tests/board_trees.py lays such a text out as files.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from regatta_runtimes.board.accelerators import ACCELERATORS, find_accelerators
from regatta_runtimes.board.delegates import DELEGATES, DelegateFacts, known_signs
from regatta_runtimes.board.drivers import MODULES
from regatta_runtimes.board.libraries import ICD_FOLDERS, api_version, find_library
from regatta_runtimes.sysfs import entries, exists, link_name, read_text

__all__ = ["PATTERNS", "record_board"]

PATTERNS = (
    "proc/cpuinfo",
    "proc/meminfo",
    *(
        "sys/firmware/devicetree/base/model",
        "proc/device-tree/model",
        "proc/device-tree/compatible",
        "proc/device-tree/chosen/bootloader/version",
    ),
    *("proc/sys/kernel/arch", "proc/sys/kernel/osrelease", "proc/driver/nvidia/version"),
    "etc/nv_tegra_release",
    *("sys/class/dmi/id/sys_vendor", "sys/class/dmi/id/product_name"),
    *(f"sys/bus/usb/devices/*/{name}" for name in ("idVendor", "idProduct", "busnum", "devnum")),
    *(f"sys/bus/pci/devices/*/{name}" for name in ("vendor", "device")),
    *(f"sys/class/apex/apex_*/{name}" for name in ("temp", "driver_version", "framework_version")),
    "sys/class/fpga_manager/fpga*",
    *(f"sys/class/fpga_manager/fpga*/{name}" for name in ("name", "state", "flags")),
    "sys/kernel/debug/gc/version",
    *("sys/class/thermal/thermal_zone*/type", "sys/class/thermal/thermal_zone*/temp"),
    *("sys/class/thermal/cooling_device*/type", "sys/class/thermal/cooling_device*/cur_state"),
    *(f"sys/class/hwmon/hwmon*/{name}" for name in ("name", "temp*_input", "in0_lcrit_alarm", "oc*_event_cnt")),
    *(f"sys/class/hwmon/hwmon*/{name}" for name in ("in*_label", "in*_input", "in*_enable", "curr*_label")),
    *(f"sys/class/hwmon/hwmon*/{name}" for name in ("curr*_input", "power*_label", "power*_input", "power*_average")),
    *(f"sys/class/hwmon/hwmon*/{name}" for name in ("energy*_input", "power*_average_interval", "update_interval")),
    *(f"sys/class/powercap/intel-rapl:*/{name}" for name in ("name", "energy_uj", "max_energy_range_uj")),
    *(f"sys/class/power_supply/*/{name}" for name in ("type", "online", "status", "present")),
    *(f"sys/class/power_supply/*/{name}" for name in ("power_now", "voltage_now", "current_now")),
    "sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/*_throttle_count",
    *(f"sys/devices/system/cpu/cpufreq/policy*/{name}" for name in ("scaling_cur_freq", "cpuinfo_max_freq")),
    *(f"{folder}/*.json" for folder in ICD_FOLDERS),
)
_LINES = {
    "proc/cpuinfo": r"(processor|model name|flags|Features|CPU implementer|CPU part)\s*:",
    "proc/meminfo": r"MemTotal:",
}
_ICD = re.compile("|".join(f"{folder}/.*json" for folder in ICD_FOLDERS))
_BOUND = ("sys/class/accel/accel*/device", "sys/class/drm/renderD*/device")  # each with a link to its driver
_PLAIN = re.compile(r"[\x21-\x7e]{1,300}")
MAX_FILES = 2000  # a big PC has some hundred
MAX_BYTES = 400_000
_MAX_TEXT = 4096  # of one file; cpuinfo of many cores is longer, and is cut at its first 64 KB by the reader


def record_board(root: Path = Path("/"), rows: Mapping[str, DelegateFacts] = DELEGATES) -> str:
    """Return the board's recorded tree."""
    lines: list[str] = []
    size = 0
    for path in _paths(root, rows)[:MAX_FILES]:
        name = str(path.relative_to(root))
        entry = _entry(path, name) if _PLAIN.fullmatch(name) else None
        if entry is not None and size + len(entry) <= MAX_BYTES:
            lines.append(entry)
            size += len(entry)
    return "\n".join(["# a board, as regatta-agent doctor --record wrote it", *lines, ""])


def _paths(root: Path, rows: Mapping[str, DelegateFacts]) -> list[Path]:
    """Return what there is of the patterns, and of the accelerators', drivers' and delegates' own paths."""
    signs = known_signs(rows)
    accelerators = find_accelerators(root, signs)
    modules = {*MODULES, *(one.driver for one in accelerators if one.driver is not None)}
    patterns = [
        *PATTERNS,
        *(path for one in {**ACCELERATORS, **signs}.values() for path in one.paths),
        *(f"sys/module/{module}{part}" for module in modules for part in ("", "/version", "/srcversion")),
    ]
    found = {path for pattern in patterns for path in entries(root, pattern)}
    found |= {device / "driver" for pattern in _BOUND for device in entries(root, pattern)}
    found |= {node for one in accelerators for node in one.nodes if exists(node)}
    libraries = [find_library(name, root) for facts in rows.values() for name in facts.libraries]
    return sorted(found | {one for path in libraries if path is not None for one in _chain(path)})


def _chain(path: Path) -> list[Path]:
    """Return a library and the file beside it that its links lead to."""
    target = os.path.realpath(path)
    beside = os.path.dirname(target) == os.path.realpath(path.parent)  # noqa: PTH120
    return [path, path.parent / Path(target).name] if beside else [path]


def _entry(path: Path, name: str) -> str | None:
    """Return the line or lines of one path."""
    if path.name == "driver":
        target = link_name(path)
        return None if target is None else f"{name} -> {target}"
    try:
        mode, size = path.stat().st_mode, path.stat().st_size
    except OSError:
        return None
    if name.startswith("dev/"):
        return f"{name} [node]"
    if stat.S_ISDIR(mode):
        return f"{name}/"
    if ".so" in path.name:
        target = os.path.realpath(path)
        return f"{name} [{size} bytes]" if Path(target).name == path.name else f"{name} -> {Path(target).name}"
    text = read_text(path)
    if text is None:
        return None
    if name in _LINES:
        return "\n".join([f"{name}:", *(f"    {line}" for line in text.splitlines() if re.match(_LINES[name], line))])
    if _ICD.fullmatch(name):  # the rest is where somebody's driver lies
        text = json.dumps({"ICD": {"api_version": api_version(text)}})
    return f"{name} = {json.dumps(text[:_MAX_TEXT])}"
