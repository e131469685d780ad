"""FPGA overlays: a bitstream and a device-tree overlay, loaded before the delegate that drives them.

plan.py decides, loader.py carries out, kernel.py is the only code that touches /sys; fdt.py reads device-tree blobs.
"""

from __future__ import annotations

from regatta_runtimes.fpga.files import MAX_BITSTREAM_BYTES, MAX_TREE_BYTES, OverlayFiles
from regatta_runtimes.fpga.loader import Fpga, FpgaLimits, Hold
from regatta_runtimes.fpga.plan import bitstream_path

__all__ = ["MAX_BITSTREAM_BYTES", "MAX_TREE_BYTES", "Fpga", "FpgaLimits", "Hold", "OverlayFiles", "bitstream_path"]
