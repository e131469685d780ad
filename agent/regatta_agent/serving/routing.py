"""Which of several placements of one model takes a request: the one expected to be done with it first. Pure.

Join-shortest-expected-delay: for each placement (requests it has + 1) times its measured time of service; the least
wins, ties go to the first, which is the winner of the race. Near the best that is known for servers of different speed
(Selen, Adan, Kapodistria, van Leeuwaarden 2016, "Steady-state analysis of shortest expected delay routing").
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["first_to_be_done"]


def first_to_be_done(delays_ns: Sequence[float]) -> int:
    """Return the index of the least of the expected delays, each with the request at hand counted in.

    Raises:
        ValueError: when there is none.
    """
    return min(range(len(delays_ns)), key=delays_ns.__getitem__)
