"""What the board lacks for a while (space, descriptors, memory), told in the log once until it is another, or is over.

Not here: what that costs. Who meets it leaves out what cannot be done, and the next turn tries again.
"""

from __future__ import annotations

import logging

__all__ = ["Trouble"]

logger = logging.getLogger(__name__)


class Trouble:
    """What kept the turn of the loop from looking or acting. Used by the loop's thread only."""

    def __init__(self) -> None:
        self._met: str | None = None  # in this turn
        self._told: str | None = None

    def new_turn(self) -> None:
        """Begin with none."""
        self._met = None

    def meet(self, what: str) -> None:
        """Take note of something that cannot be done for now."""
        self._met = what

    def tell(self) -> None:
        """Log what this turn met, where it is news."""
        if self._met is None and self._told is not None:
            logger.info("event=board_out_of_trouble")
        elif self._met != self._told:
            logger.error("event=board_in_trouble %s action=tried_again_each_turn", self._met)
        self._told = self._met
