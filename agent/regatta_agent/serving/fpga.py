"""The serving worker's use of the FPGA: the overlay is loaded before the delegate that drives it is opened.

A seat holds it as long as it is open, so that no other process takes it away under a running model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from regatta_agent.serving.spec import Contender, ServeSpec
from regatta_runtimes.candidate import parse_candidate_id

if TYPE_CHECKING:
    from regatta_runtimes.fpga.loader import Hold

__all__ = ["hold_overlay"]


def hold_overlay(spec: ServeSpec, contender: Contender) -> Hold | None:
    """Return a hold on the overlay that the contender needs, loaded and operating; None when it needs none.

    Raises:
        RegattaError: when it cannot be loaded; see regatta_runtimes.fpga.Fpga.hold.
    """
    if spec.overlay is None or parse_candidate_id(contender.candidate_id).delegate != spec.overlay.delegate:
        return None
    from regatta_runtimes.fpga.loader import Fpga  # few boards have one

    return Fpga(spec.sysroot).hold(spec.overlay, f"{spec.model}:{spec.version}")
