"""An FPGA overlay as the operator gives it, made a part of a bundle: checked, and its device tree led to the bitstream.

A board's kernel loads the file that the device tree names. What the agent installs is named by its content, so that
name is written into the bundle's copy of the device tree; everything else in it stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from regatta_protocol.durable import read_bounded
from regatta_protocol.errors import Rejected
from regatta_protocol.ids import digest_of_file
from regatta_protocol.manifest import FileRef, Overlay
from regatta_runtimes.fpga.fdt import with_bitstream_name
from regatta_runtimes.fpga.overlay import MAX_BITSTREAM_BYTES, MAX_TREE_BYTES
from regatta_runtimes.fpga.plan import bitstream_path
from regatta_runtimes.worker.inspect import ModelFacts

__all__ = ["Models", "OverlaySource", "overlay_of", "with_overlay"]

Models = Mapping[str, tuple[Path, ModelFacts]]


@dataclass(frozen=True)
class OverlaySource:
    """What a user gives for an FPGA."""

    name: str
    bitstream: Path
    delegate: str
    device_tree: Path | None = None
    flags: int = 0


def with_overlay(models: Models, source: OverlaySource | None) -> Models:
    """Return the variants by name, with one for the overlay: those that require its delegate, or else the first again.

    The first model's file then races on the processor under its own name, and on the FPGA under the overlay's.

    Raises:
        Rejected: when a variant has the overlay's name already.
    """
    if source is None or any(source.delegate in facts.requires for _, facts in models.values()):
        return models
    if source.name in models:
        raise Rejected(f"a variant is named {source.name} already: give the overlay another name")
    path, facts = next(iter(models.values()))
    return {**models, source.name: (path, replace(facts, requires=(source.delegate,)))}


def overlay_of(source: OverlaySource, scratch: Path, add: Callable[[Path], FileRef]) -> Overlay:
    """Return the overlay with its files added to the bundle.

    Args:
        scratch: where the changed device tree is written.
        add: takes a file into the bundle.

    Raises:
        Rejected: when a file is missing, empty, too large, or the device tree is no compiled one.
    """
    if not source.bitstream.is_file():
        raise Rejected(f"the bitstream {source.bitstream} is not a file")
    size = source.bitstream.stat().st_size
    if not 0 < size <= MAX_BITSTREAM_BYTES:
        raise Rejected(
            f"the bitstream {source.bitstream} has {size} bytes: a bitstream has 1 to {MAX_BITSTREAM_BYTES}. Is it the "
            ".bin that bootgen or Vivado made?"
        )
    dtbo: FileRef | None = None
    if source.device_tree is not None:
        dtbo = add(_led_tree(source.device_tree, bitstream_path(digest_of_file(source.bitstream)), scratch))
    return Overlay(
        name=source.name,
        bitstream=add(source.bitstream),
        dtbo=dtbo,
        flags=source.flags,
        delegate=source.delegate,
    )


def _led_tree(path: Path, bitstream: str, scratch: Path) -> Path:
    """Return a copy of the device tree that names `bitstream`, if it names one at all."""
    try:
        blob = with_bitstream_name(read_bounded(path, MAX_TREE_BYTES), bitstream)
    except Rejected as err:
        raise Rejected(f"{path}: {err}") from err
    except OSError as err:
        raise Rejected(f"the device-tree overlay {path} cannot be read: {err.strerror}") from err
    copy = scratch / "overlay.dtbo"
    copy.write_bytes(blob)
    return copy
