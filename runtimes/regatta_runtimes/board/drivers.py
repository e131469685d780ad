"""Which driver, firmware and library versions a board has, as far as its files say. Nothing is loaded or run.

They are compared, not interpreted: a result of a race holds while they stay the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from regatta_runtimes.board.accelerators import Accelerator
from regatta_runtimes.board.libraries import find_library, library_version, vulkan_drivers
from regatta_runtimes.sysfs import entries, exists, read_text

__all__ = ["MODULES", "find_drivers"]

MODULES = (
    *("apex", "gasket", "galcore", "ethosu", "etnaviv", "fastrpc", "hailo_pci", "intel_vpu", "rocket"),
    *("amdgpu", "i915", "msm", "nouveau", "nvidia", "nvgpu", "panfrost", "panthor", "v3d", "xe", "zocl"),
)
_MAX_VERSION = 120


def find_drivers(root: Path, accelerators: Iterable[Accelerator], libraries: Iterable[str]) -> dict[str, str]:
    """Return versions by driver, firmware or library.

    Args:
        accelerators: whose drivers are told in any case.
        libraries: file names that delegates are loaded from; those that are there are told.
    """
    found: dict[str, str] = {}
    bound = {accelerator.driver for accelerator in accelerators if accelerator.driver is not None}
    for module in sorted({*MODULES, *bound}):
        if version := _module(root, module, module in bound):
            found[module] = version
    found |= _firmware(root)
    for name in sorted(set(libraries)):
        path = find_library(name, root)
        if path is not None:
            found[Path(name).name] = library_version(path)
    found |= {f"vulkan {name}": version for name, version in vulkan_drivers(root).items()}
    return {name: version[:_MAX_VERSION] for name, version in sorted(found.items())}


def _module(root: Path, name: str, bound: bool) -> str | None:
    """Return a kernel module's version, of the kernel where it has none of its own; None when it is not loaded."""
    folder = root / "sys/module" / name
    if not bound and not exists(folder):
        return None
    own = read_text(folder / "version") or read_text(folder / "srcversion")
    return own or f"of kernel {read_text(root / 'proc/sys/kernel/osrelease') or 'unknown'}"


def _firmware(root: Path) -> dict[str, str]:
    """Return the versions that boards write into files of their own."""
    found = {
        # the VideoCore firmware's commit on a Raspberry Pi 4, the bootloader's on a 5 (rpi-eeprom's release notes)
        "raspberrypi-firmware": read_text(root / "proc/device-tree/chosen/bootloader/version"),
        "nvidia": _match(root / "proc/driver/nvidia/version", r"Kernel Module.*?\s(\d+\.\d+(?:\.\d+)*)"),
        "jetson-linux": _jetson(root),
        # debugfs: for root only
        "galcore": read_text(root / "sys/kernel/debug/gc/version"),
    }
    for path in entries(root / "sys/class/apex", "apex_*"):
        found["apex"] = read_text(path / "driver_version")
        found["gasket"] = read_text(path / "framework_version")
    return {name: " ".join(version.split()) for name, version in found.items() if version}


def _jetson(root: Path) -> str | None:
    """Return Jetson Linux' version: `# R36 (release), REVISION: 3.0, …` is 36.3.0."""
    match = re.match(r"# R(\d+) \(release\), REVISION: ([\d.]+)", read_text(root / "etc/nv_tegra_release") or "")
    return f"{match[1]}.{match[2]}" if match else None


def _match(path: Path, pattern: str) -> str | None:
    match = re.search(pattern, read_text(path) or "")
    return match[1] if match else None
