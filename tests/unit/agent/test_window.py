"""Which chunks are asked for: every missing one in the end, and not too many at once."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from regatta_agent.core.window import Window


@given(missing=st.sets(st.integers(0, 300)), seed=st.integers(0, 999), loss=st.floats(0, 0.9))
def test_it_ends_whatever_is_lost(missing: set[int], seed: int, loss: float) -> None:
    """Each chunk is asked for until it comes; only missing ones are; the way is never overfull."""
    draw, window, now_s, left = Random(seed), Window(sorted(missing)), 0.0, set(missing)
    for _ in range(20_000):
        if window.complete:
            break
        for start, stop in window.ask(now_s):
            assert stop - start <= 64
            for index in range(start, stop):
                assert index in left
                if draw.random() >= loss:
                    window.arrived(index, now_s)
                    left.discard(index)
        now_s += 0.5

    assert window.complete
    assert not left


def test_nothing_is_asked_twice_while_it_may_still_come() -> None:
    """Only silence makes a chunk count as lost."""
    window = Window(range(100))
    first = window.ask(0.0)
    assert first == ((0, 8),)

    assert window.ask(1.0) == ()
    assert window.ask(2.5) == ((0, 4),)
