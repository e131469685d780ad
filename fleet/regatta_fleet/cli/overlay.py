"""The options of `regatta model push` for an FPGA overlay, given together or not at all."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from regatta_protocol.ids import parse_model_name

if TYPE_CHECKING:
    from regatta_fleet.models.overlay import OverlaySource

__all__ = ["overlay_options"]

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
R = TypeVar("R")


def _flags(_context: click.Context, _parameter: click.Parameter, text: str) -> int:
    """Return the FPGA manager's flags, decimal or 0x…"""
    try:
        flags = int(text, 0)
    except ValueError:
        flags = -1
    if not 0 <= flags <= 0xFFFF_FFFF:
        raise click.BadParameter(f"{text!r} is no number of 32 bits: write 0 for a full bitstream, 1 for a partial one")
    return flags


def overlay_options(command: Callable[..., R]) -> Callable[..., R]:
    """Add the options to a command, which gets `overlay`, an OverlaySource or None."""

    @click.option("--overlay", "overlay_name", metavar="NAME", help="Name of an FPGA overlay to load for this model.")
    @click.option("--bitstream", type=_FILE, help="The overlay's bitstream, a .bin.")
    @click.option("--device-tree-overlay", "device_tree", type=_FILE, help="Its compiled device-tree overlay, a .dtbo.")
    @click.option("--overlay-delegate", metavar="DELEGATE", help="The delegate that drives it on the device.")
    @click.option("--overlay-flags", callback=_flags, default="0", help="Of the FPGA manager; 1: a partial bitstream.")
    @functools.wraps(command)
    def wrapped(
        *args: Any,  # noqa: ANN401 - the command's own
        overlay_name: str | None,
        bitstream: Path | None,
        device_tree: Path | None,
        overlay_delegate: str | None,
        overlay_flags: int,
        **kwargs: Any,  # noqa: ANN401 - the command's own
    ) -> R:
        source = _source(overlay_name, bitstream, device_tree, overlay_delegate, overlay_flags)
        return command(*args, overlay=source, **kwargs)

    return wrapped


def _source(
    name: str | None, bitstream: Path | None, device_tree: Path | None, delegate: str | None, flags: int
) -> OverlaySource | None:
    from regatta_fleet.models.overlay import OverlaySource

    if name is None:
        if bitstream is not None or device_tree is not None or delegate is not None or flags:
            raise click.UsageError("an FPGA overlay needs a name: give --overlay NAME too")
        return None
    if bitstream is None or delegate is None:
        raise click.UsageError(
            f"overlay {name} needs --bitstream FILE and --overlay-delegate DELEGATE (see docs/fpga.md)"
        )
    return OverlaySource(parse_model_name(name), bitstream, parse_model_name(delegate), device_tree, flags)
