"""An overlay as files: what the agent, the race and the worker hand to each other. Imports nothing that loads one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from regatta_protocol.bounds import Bounds

__all__ = ["MAX_BITSTREAM_BYTES", "MAX_TREE_BYTES", "OverlayFiles"]

MAX_BITSTREAM_BYTES = 256 * 1024 * 1024  # the largest Zynq UltraScale+ needs 45 MB, Versal images some 100 MB
MAX_TREE_BYTES = 1024 * 1024  # what configfs takes of a blob (SZ_1M in Xilinx's drivers/of/configfs.c)


@dataclass(frozen=True, kw_only=True)
class OverlayFiles:
    """An overlay as files on this machine."""

    name: str
    bitstream: str
    device_tree: str | None = None
    flags: Annotated[int, Bounds(ge=0, le=0xFFFF_FFFF)] = 0
    delegate: str
