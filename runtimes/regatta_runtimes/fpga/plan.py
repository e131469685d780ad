"""What must be done so that an overlay is the one loaded: facts and what was remembered in, steps out. Pure.

A record is written before the FPGA is touched (`changing`), and again when the change is over. A record that still
says `changing` is of a process that was ended in between: whatever is loaded then is not trusted, and the next change
begins by taking our device-tree overlay away.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import Field

from regatta_protocol.enums import StrEnum
from regatta_protocol.errors import Misuse, RegattaError, Rejected, Retryable
from regatta_protocol.ids import Digest, DigestField
from regatta_protocol.wire import Wire

__all__ = [
    "FOLDER",
    "ApplyTree",
    "Await",
    "FpgaFacts",
    "Loaded",
    "OverlayRecord",
    "Program",
    "RemoveTree",
    "Step",
    "Trouble",
    "WriteFlags",
    "bitstream_path",
    "busy_with",
    "is_settled",
    "previous_of",
    "steps_to",
    "trouble_of",
]

FOLDER = "regatta"  # below /lib/firmware, where the kernel looks for what it is told to load


class Loaded(Wire):
    """An overlay by its content. `tree_programs`: its device tree names the bitstream, and the kernel loads both."""

    name: str
    bitstream: DigestField
    device_tree: DigestField | None = None
    flags: int = Field(default=0, ge=0)
    tree_programs: bool = False
    user: str = ""  # the model that it was loaded for

    @property
    def bitstream_file(self) -> str:
        """The bitstream as the kernel is told of it."""
        return bitstream_path(self.bitstream)

    @property
    def tree_file(self) -> str | None:
        """The device-tree overlay as the kernel is told of it."""
        return None if self.device_tree is None else f"{FOLDER}/{self.device_tree}.dtbo"

    def same_as(self, other: Loaded | None) -> bool:
        """Return whether both put the same content into the FPGA."""
        return other is not None and _content(self) == _content(other)

    def __str__(self) -> str:
        return f"overlay {self.name} ({self.bitstream[:12]})"


def bitstream_path(digest: Digest) -> str:
    """Return the name by which the kernel is told of the bitstream with this digest."""
    return f"{FOLDER}/{digest}.bin"


def _content(overlay: Loaded) -> tuple[str, str | None, int]:
    return overlay.bitstream, overlay.device_tree, overlay.flags


class OverlayRecord(Wire):
    """What is remembered on disk."""

    schema_version: int = 1
    boot: str | None = None  # the kernel's id of the boot in which it was written: an FPGA forgets with its power
    loaded: Loaded | None = None  # what was last loaded and checked; while `changing`, what to go back to
    changing: bool = False
    wanted: Loaded | None = None  # while `changing`: what it changes to


@dataclass(frozen=True)
class FpgaFacts:
    """What the kernel shows."""

    manager: str | None  # its folder's name, fpga0; None when there is none
    state: str | None
    offers_firmware: bool = False  # a bitstream can be loaded by name: kernels of Xilinx
    offers_flags: bool = False
    offers_trees: bool = False  # device-tree overlays can be applied through configfs
    tree: str | None = None  # status of our overlay there: applied, unapplied; None when there is none
    foreign: tuple[str, ...] = field(default=())  # overlays of others that program the FPGA
    boot: str | None = None


@dataclass(frozen=True)
class RemoveTree:
    """Take our device-tree overlay out of the live tree."""


@dataclass(frozen=True)
class WriteFlags:
    flags: int


@dataclass(frozen=True)
class Program:
    """Have the kernel load the bitstream."""

    file: str


@dataclass(frozen=True)
class ApplyTree:
    """Have the kernel apply the device-tree overlay, and load the bitstream that it names."""

    file: str


@dataclass(frozen=True)
class Await:
    """Wait until the FPGA operates, and our device-tree overlay is applied where there is one."""

    tree: bool


Step = RemoveTree | WriteFlags | Program | ApplyTree | Await


def is_settled(record: OverlayRecord, wanted: Loaded, facts: FpgaFacts) -> bool:
    """Return whether `wanted` is loaded and operating, so that nothing need be done."""
    return (
        not record.changing
        and wanted.same_as(record.loaded)
        and record.boot == facts.boot
        and facts.state == "operating"
        and (wanted.device_tree is None or facts.tree == "applied")
    )


def previous_of(record: OverlayRecord, facts: FpgaFacts) -> Loaded | None:
    """Return what to go back to when a change fails: nothing after a boot, for then nothing of it is loaded."""
    return record.loaded if record.boot == facts.boot else None


def steps_to(wanted: Loaded | None, facts: FpgaFacts) -> tuple[Step, ...]:
    """Return what makes `wanted` the overlay that is loaded, from any state. None takes ours away.

    A bitstream alone cannot be unloaded: it stays until another one is loaded.

    Raises:
        Misuse: when this kernel cannot load it, or another program's overlay holds the FPGA.
    """
    steps: list[Step] = [RemoveTree()] if facts.tree is not None else []
    if wanted is None:
        return tuple(steps)
    _check_possible(wanted, facts)
    if facts.offers_flags:
        steps.append(WriteFlags(wanted.flags))
    if not wanted.tree_programs:
        steps += [Program(wanted.bitstream_file), Await(tree=False)]
    if wanted.tree_file is not None:
        steps += [ApplyTree(wanted.tree_file), Await(tree=True)]
    return tuple(steps)


def _check_possible(wanted: Loaded, facts: FpgaFacts) -> None:
    if facts.manager is None:
        raise Misuse(
            f"{wanted} needs an FPGA, and the kernel shows none in /sys/class/fpga_manager: use a kernel with the "
            "board's FPGA manager driver (zynq-fpga, zynqmp-fpga or versal-fpga), and load it"
        )
    if facts.foreign:
        raise Misuse(
            f"{wanted} cannot be loaded: the device-tree overlay {', '.join(facts.foreign)} of another program holds "
            "the FPGA: unload it (`xmutil unloadapp` on Kria) and keep it from being loaded at boot"
        )
    if wanted.tree_file is not None and not facts.offers_trees:
        raise Misuse(
            f"{wanted} has a device-tree overlay, and this kernel has no /sys/kernel/config/device-tree/overlays: "
            "use a kernel with CONFIG_OF_CONFIGFS (Xilinx's and Ubuntu's for Kria have it), and mount configfs"
        )
    if not wanted.tree_programs and not facts.offers_firmware:
        raise Misuse(
            f"{wanted} cannot be loaded: this kernel's {facts.manager} has no `firmware` attribute (Xilinx's kernels "
            "have it): push the model with a --device-tree-overlay whose fpga-region names the bitstream"
        )
    if wanted.flags and not wanted.tree_programs and not facts.offers_flags:
        raise Misuse(
            f"{wanted} has flags {wanted.flags:#x}, and this kernel's {facts.manager} has no `flags` attribute: "
            "name them in the device-tree overlay, for example partial-fpga-config"
        )


class Kind(StrEnum):
    """How a state of the FPGA manager is to be taken."""

    OPERATING = "operating"
    IDLE = "idle"
    BUSY = "busy"
    FAILED = "failed"


@dataclass(frozen=True)
class Trouble:
    """A state that is none to go on with: whose fault it is, and what to do."""

    family: type[RegattaError]
    words: str


# Documentation/ABI/testing/sysfs-class-fpga-manager; the words say what the manager's drivers mean by it
_STATES: dict[str, tuple[Kind, Trouble | None]] = {
    "operating": (Kind.OPERATING, None),
    "unknown": (Kind.IDLE, Trouble(Retryable, "the kernel cannot tell the FPGA's state: see `dmesg`")),
    "power off": (Kind.IDLE, Trouble(Retryable, "the FPGA has no power: switch its power domain on")),
    "power up": (Kind.IDLE, Trouble(Retryable, "the FPGA is powering up: it is tried again")),
    "reset": (Kind.IDLE, Trouble(Retryable, "the FPGA is held in reset: see `dmesg`")),
    "firmware request": (Kind.BUSY, Trouble(Retryable, "the kernel is still looking for the file")),
    "firmware request error": (
        Kind.FAILED,
        Trouble(
            Misuse,
            "the kernel did not find the file in /lib/firmware: unset firmware_class.path on its command line, "
            "or let it lead there",
        ),
    ),
    "write init": (Kind.BUSY, Trouble(Retryable, "the FPGA is being prepared")),
    "write init error": (
        Kind.FAILED,
        Trouble(Rejected, "the FPGA refused the bitstream's beginning: it is of another device, or no .bin of bootgen"),
    ),
    "write": (Kind.BUSY, Trouble(Retryable, "the bitstream is still being written")),
    "write error": (Kind.FAILED, Trouble(Rejected, "the FPGA refused the bitstream: it is damaged, or of another one")),
    "write complete": (Kind.BUSY, Trouble(Retryable, "the FPGA is still starting")),
    "write complete error": (
        Kind.FAILED,
        Trouble(Rejected, "the FPGA did not start with this bitstream: make it for this device and its settings"),
    ),
}


def busy_with(state: str | None) -> str | None:
    """Return in words what the FPGA manager is in the middle of, or None."""
    kind, trouble = _STATES.get(state or "", (Kind.IDLE, None))
    return trouble.words if kind is Kind.BUSY and trouble is not None else None


def trouble_of(state: str | None, *, waited_out: bool) -> Trouble | None:
    """Return what is wrong when the FPGA does not operate, or None while it operates or may yet.

    Args:
        state: None when it cannot be read any more.
        waited_out: the time is up, so that a state in between is trouble too.
    """
    if state is None:
        return Trouble(Retryable, "the FPGA manager is gone from /sys: see `dmesg` for its driver")
    kind, trouble = _STATES.get(state, (Kind.FAILED if "error" in state else Kind.IDLE, None))
    if kind is Kind.OPERATING or (kind is not Kind.FAILED and not waited_out):
        return None
    if trouble is not None:
        return trouble
    return Trouble(Rejected if kind is Kind.FAILED else Retryable, "this kernel's state is not known here: see `dmesg`")
