"""A race's use of the FPGA: the bundle's overlay loaded before its candidates start, and the right one left after.

The overlay of the placed candidate stays; when another candidate won, or nothing was placed, the overlay before the
race is loaded again. Whatever fails becomes the reason of the candidates that need the overlay, never of the race.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

from regatta_protocol.errors import RegattaError
from regatta_protocol.measurement import BoardFacts
from regatta_runtimes.board.delegates import DelegateFacts, find_plugin
from regatta_runtimes.fpga.loader import Fpga, Hold
from regatta_runtimes.fpga.overlay import OverlayFiles

__all__ = ["OverlayTurn"]

logger = logging.getLogger(__name__)


class OverlayTurn:
    """One race's turn at the FPGA; without an overlay it does nothing. Left by an exception, it restores."""

    def __init__(self, overlay: OverlayFiles | None, user: str, root: Path) -> None:
        self.refusals: dict[str, str] = {}  # the overlay's delegate -> why it cannot race
        self._overlay = overlay
        self._user = user
        self._root = root
        self._hold: Hold | None = None

    def load(
        self,
        board: BoardFacts,
        rows: Mapping[str, DelegateFacts],
        reserved: str | None,
        progress: Callable[[str], None],
    ) -> None:
        """Load the overlay, unless its candidates cannot race for another reason.

        Args:
            reserved: why the FPGA is not free for this race, or None.
        """
        if self._overlay is None:
            return
        if "fpga" not in board.accelerators:
            seen = ", ".join(board.accelerators) or "none"
            self.refusals[self._overlay.delegate] = (
                f"it brings the FPGA overlay {self._overlay.name}, and no FPGA was found here (accelerators found: "
                f"{seen}): use a board with an FPGA, and a kernel with its FPGA manager driver"
            )
            return
        if isinstance(find_plugin(self._overlay.delegate, board, rows, self._root), str):
            return  # the missing delegate is told for each candidate; the FPGA is left alone
        if reserved is not None:
            self.refusals[self._overlay.delegate] = reserved
            return
        try:
            self._hold = Fpga(self._root).hold(self._overlay, self._user)
        except RegattaError as err:
            self.refusals[self._overlay.delegate] = str(err)
        progress(f"overlay {self._overlay.name}: {self.refusals.get(self._overlay.delegate, 'loaded')}")

    def end(self, placed: str | None) -> dict[str, str]:
        """Let the FPGA go; return what a reader of the report should know about it.

        Args:
            placed: the delegate of the placed candidate; the overlay stays when it is its own.
        """
        hold, self._hold = self._hold, None
        if hold is None or self._overlay is None:
            return {}
        if placed == self._overlay.delegate:
            hold.close()
            return {"fpga": f"{hold.overlay} is loaded"}
        try:
            hold.give_back()
        except RegattaError as err:
            logger.error("event=overlay_not_restored overlay=%s error=%s", hold.before, err)
            return {"fpga": f"the overlay before the race could not be loaded again: {err}"}
        return {"fpga": f"{hold.before or 'no overlay'} is loaded, as before the race"}

    def __enter__(self) -> OverlayTurn:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.end(None)
