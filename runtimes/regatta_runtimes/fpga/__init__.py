"""FPGA overlays: a bitstream and a device-tree overlay, loaded before the delegate that drives them.

plan.py decides, loader.py carries out, kernel.py is the only code that touches /sys; fdt.py reads device-tree blobs.
Nothing is imported here: the agent's control process needs overlay.py alone.
"""
