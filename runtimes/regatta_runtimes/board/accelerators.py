"""The accelerators that a board may have, as data: what each is known by, and where its device node is.

An accelerator is found by its device, never by an installed library. Users add accelerators beside the delegate that
serves them (delegates.py, `signs`). Sources: runtimes.md, Boards; the kernel's drivers/accel and drivers/gpu/drm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from regatta_runtimes.sysfs import entries, exists, link_name, read_number, read_text

__all__ = ["ACCELERATORS", "Accelerator", "Signs", "compatibles", "find_accelerators"]


def _below_the_root(pattern: str) -> str:
    parts = pattern.split("/")
    if pattern.startswith("/") or ".." in parts or any("**" in part for part in parts):
        raise ValueError("write it relative to the root, without a leading /, .. and **")
    return pattern


_Path = Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]{1,200}$"), AfterValidator(_below_the_root)]
_Id = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{4}:[0-9a-f]{4}$")]
_Word = Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]{1,100}$")]
_Paths = Annotated[tuple[_Path, ...], Field(max_length=16)]


class Signs(BaseModel):
    """What an accelerator is known by: any of these is enough.

    paths: patterns under the root; those below dev/ are also the nodes that a process opens.
    usb, pci: vendor:device, in hexadecimal.
    compatible: patterns of the device tree's root compatible strings.
    drivers: kernel drivers of sys/class/accel (NPUs) or of a DRM render node (GPUs).
    only_on: patterns of root compatible strings; one must match beside another sign. None: any board.
    node_hint: what to do when the accelerator is there and none of its nodes is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    paths: _Paths = ()
    usb: tuple[_Id, ...] = Field(default=(), max_length=16)
    pci: tuple[_Id, ...] = Field(default=(), max_length=16)
    compatible: tuple[_Word, ...] = Field(default=(), max_length=16)
    drivers: tuple[_Word, ...] = Field(default=(), max_length=16)
    only_on: tuple[_Word, ...] = Field(default=(), max_length=16)
    node_hint: str = Field(default="", max_length=500)


@dataclass(frozen=True)
class Accelerator:
    """One that was found: `nodes` under the root, and the kernel driver where it is known."""

    name: str
    nodes: tuple[Path, ...] = ()
    driver: str | None = None


# render nodes of vgem, vkms, virtio_gpu and the like are no GPU
_GPU_DRIVERS = (
    *("amdgpu", "asahi", "i915", "msm", "msm_dpu", "nouveau", "nvidia"),
    *("panfrost", "panthor", "powervr", "v3d", "xe"),
)

ACCELERATORS: Mapping[str, Signs] = {
    # a Coral USB shows the first id until its firmware is loaded on first use, then the second
    "coral-usb": Signs(usb=("1a6e:089a", "18d1:9302"), node_hint="unplug it and plug it in again"),
    "coral-pcie": Signs(
        paths=("dev/apex_*", "sys/class/apex/apex_*"),
        pci=("1ac1:089a",),
        node_hint="install its kernel driver, gasket-dkms (https://github.com/google/gasket-driver), and load apex",
    ),
    "jetson": Signs(
        paths=("etc/nv_tegra_release", "dev/nvmap"),
        compatible=("nvidia,tegra*",),
        node_hint="flash Jetson Linux, whose driver makes /dev/nvmap",
    ),
    "gpu": Signs(paths=("dev/nvidia0",), drivers=_GPU_DRIVERS, node_hint="load the GPU's kernel driver"),
    # other i.MX 8 have the node too, for their GPU
    "imx8mp-npu": Signs(paths=("dev/galcore",), only_on=("fsl,imx8mp",)),
    "etnaviv-npu": Signs(paths=("sys/bus/platform/drivers/etnaviv-gpu/*.npu",), node_hint="load the module etnaviv"),
    "ethosu": Signs(paths=("dev/ethosu0",)),  # NXP's driver, which talks to the Cortex-M
    "ethosu-accel": Signs(drivers=("ethosu",)),  # the kernel's own since 6.19, which Mesa drives
    "rocket": Signs(drivers=("rocket",)),
    "intel-npu": Signs(
        drivers=("intel_vpu",),
        pci=("8086:7d1d", "8086:ad1d", "8086:643e", "8086:b03e"),
        node_hint="use kernel 6.8 or later with intel_vpu, and install its firmware",
    ),
    "qualcomm-htp": Signs(paths=("dev/fastrpc-cdsp*", "dev/adsprpc-smd*")),
    "ti-c7x": Signs(
        compatible=("ti,j721e", "ti,j721s2", "ti,j722s", "ti,j784s4", "ti,am62a7", "ti,am68*", "ti,am69*"),
    ),
    "hailo": Signs(
        paths=("dev/hailo*",), pci=("1e60:2864",), node_hint="install its kernel driver: apt-get install hailo-all"
    ),
    "fpga": Signs(paths=("sys/class/fpga_manager/fpga*",)),
}


def find_accelerators(root: Path, extra: Mapping[str, Signs] | None = None) -> tuple[Accelerator, ...]:
    """Return the accelerators whose devices are there, by name.

    A driver of sys/class/accel that no sign names is an accelerator of the driver's name.

    Args:
        extra: more signs by accelerator; one of a known name replaces its.
    """
    table = {**ACCELERATORS, **(extra or {})}
    seen = _Seen(root, compatibles(root), _usb(root), _pci(root), _drivers(root))
    found = [one for name, signs in table.items() if (one := seen.find(name, signs)) is not None]
    named = {driver for signs in table.values() for driver in signs.drivers}
    for driver, nodes in seen.drivers.items():
        if driver not in named and nodes[0].parent.name == "accel":
            found.append(Accelerator(driver, nodes, driver))
    return tuple(sorted(found, key=lambda accelerator: accelerator.name))


def compatibles(root: Path) -> tuple[str, ...]:
    """Return the root compatible strings of the device tree."""
    text = read_text(root / "proc/device-tree/compatible") or ""
    return tuple(part for part in text.split("\0") if part)


@dataclass(frozen=True)
class _Seen:
    """What the board shows of its devices."""

    root: Path
    board: tuple[str, ...]
    usb: Mapping[str, tuple[Path, ...]]
    pci: frozenset[str]
    drivers: Mapping[str, tuple[Path, ...]]

    def find(self, name: str, signs: Signs) -> Accelerator | None:
        """Return the accelerator if one of its signs is there."""
        if signs.only_on and not self._is(signs.only_on):
            return None
        paths = [path for pattern in signs.paths for path in entries(self.root, pattern)]
        sticks = [one for one in signs.usb if one in self.usb]
        bound = [driver for driver in signs.drivers if driver in self.drivers]
        cards = [one for one in signs.pci if one in self.pci]
        if not (paths or sticks or bound or cards or self._is(signs.compatible)):
            return None
        nodes = [path for path in paths if path.relative_to(self.root).parts[0] == "dev"]
        nodes += [node for driver in bound for node in self.drivers[driver]]
        nodes += [node for one in sticks for node in self.usb[one]]
        return Accelerator(name, tuple(nodes), bound[0] if bound else None)

    def _is(self, patterns: tuple[str, ...]) -> bool:
        return any(fnmatchcase(text, pattern) for text in self.board for pattern in patterns)


def _pci(root: Path) -> frozenset[str]:
    """Return the vendor:device of each PCI device; its files write them as 0x1ac1."""
    ids = (
        (read_text(path / "vendor"), read_text(path / "device")) for path in entries(root / "sys/bus/pci/devices", "*")
    )
    return frozenset(
        f"{vendor.removeprefix('0x')}:{device.removeprefix('0x')}".lower()
        for vendor, device in ids
        if vendor and device
    )


def _usb(root: Path) -> dict[str, tuple[Path, ...]]:
    """Return the nodes in dev/bus/usb of each vendor:product."""
    found: dict[str, tuple[Path, ...]] = {}
    for path in entries(root / "sys/bus/usb/devices", "*"):
        vendor, product = read_text(path / "idVendor"), read_text(path / "idProduct")
        if vendor and product:
            bus, number = read_number(path / "busnum"), read_number(path / "devnum")
            node = root / f"dev/bus/usb/{bus:03d}/{number:03d}" if bus and number else None
            there = (node,) if node is not None and exists(node) else ()
            one = f"{vendor}:{product}".lower()
            found[one] = found.get(one, ()) + there
    return found


def _drivers(root: Path) -> dict[str, tuple[Path, ...]]:
    """Return the nodes of each kernel driver of an NPU (dev/accel) and of a render node (dev/dri)."""
    found: dict[str, tuple[Path, ...]] = {}
    for folder, pattern, devices in (("accel", "accel*", "dev/accel"), ("drm", "renderD*", "dev/dri")):
        for path in entries(root / "sys/class" / folder, pattern):
            driver = link_name(path / "device/driver")
            if driver:
                found[driver] = (*found.get(driver, ()), root / devices / path.name)
    return found
