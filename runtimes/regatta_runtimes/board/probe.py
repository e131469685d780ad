"""What the board is: model, CPU, memory, accelerators, drivers, heat, read from /proc, /sys and /dev under a root.

`python -m regatta_runtimes.board.probe ROOT [DELEGATE_FILE…]` prints it as JSON, for a process that shall stay small.

No numpy, nothing loaded. A fact that cannot be found out is None or absent, whatever lies under the root. Accelerators
are found by their devices, not by installed libraries. The parts: cpu.py, accelerators.py, drivers.py, thermal.py.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from regatta_protocol.codec import encode
from regatta_protocol.errors import RegattaError
from regatta_protocol.measurement import BoardFacts
from regatta_runtimes.board.accelerators import find_accelerators
from regatta_runtimes.board.cpu import cpu_features, cpu_name, listed_cores
from regatta_runtimes.board.delegates import DELEGATES, DelegateFacts, known_signs, read_delegates
from regatta_runtimes.board.drivers import find_drivers
from regatta_runtimes.board.thermal import HeatReader
from regatta_runtimes.power.finder import find_sensor
from regatta_runtimes.power.sensor import UnknownPower
from regatta_runtimes.sysfs import read_text

__all__ = ["main", "probe_board"]

_MAX_NAME = 200


def probe_board(root: Path = Path("/"), rows: Mapping[str, DelegateFacts] = DELEGATES) -> BoardFacts:
    """Return what the board under `root` is.

    Args:
        rows: the delegates that are known; theirs are the libraries that are looked for, and the accelerators that
            users add.
    """
    cpuinfo = read_text(root / "proc/cpuinfo") or ""
    sensor = find_sensor(root)
    own = root == Path("/")
    accelerators = find_accelerators(root, known_signs(rows))
    libraries = [library for facts in rows.values() for library in facts.libraries]
    heat = HeatReader(root).read()
    return BoardFacts(
        model=_model(root),
        machine=platform.machine() if own else _name(root / "proc/sys/kernel/arch"),
        cpu=cpu_name(cpuinfo),
        cores=len(os.sched_getaffinity(0)) if own else listed_cores(cpuinfo),  # those that this process may use
        memory_bytes=_memory(root),
        kernel=_name(root / "proc/sys/kernel/osrelease"),
        cpu_features=cpu_features(cpuinfo),
        accelerators=tuple(accelerator.name for accelerator in accelerators),
        drivers=find_drivers(root, accelerators, libraries),
        power_sensor=None if isinstance(sensor, UnknownPower) else sensor.name,
        temperature_c=heat.temperature_c,
        throttled=heat.throttled,
    )


def _model(root: Path) -> str | None:
    """Return the board's name: of the device tree, or of the firmware on PCs."""
    for path in ("proc/device-tree/model", "sys/firmware/devicetree/base/model"):
        if model := _name(root / path):
            return model
    parts = [_name(root / "sys/class/dmi/id" / name) for name in ("sys_vendor", "product_name")]
    return " ".join(part for part in parts if part) or None


def _name(path: Path) -> str | None:
    """Return a file's text as a name, of a length that reports and fingerprints can carry."""
    text = read_text(path)
    return None if text is None else text[:_MAX_NAME]


def _memory(root: Path) -> int | None:
    match = re.search(r"^MemTotal:\s*(\d{1,18}) kB", read_text(root / "proc/meminfo") or "", re.MULTILINE | re.ASCII)
    return int(match[1]) * 1024 if match else None


def main(arguments: list[str]) -> int:
    """Print the facts of the board under the root that is given first; return the exit status."""
    root, *files = (Path(argument) for argument in arguments)
    try:
        facts = probe_board(root, read_delegates(files, root))
    except RegattaError as err:
        sys.stderr.write(f"{err}\n")
        return err.exit_code
    sys.stdout.buffer.write(encode(facts))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
