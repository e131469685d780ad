"""The line of frames is bounded, and what finds no room is dropped by its policy and counted."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polling import wait_until
from regatta_agent.pipeline.frames import Frame, FrameLine
from regatta_agent.pipeline.settings import WhenFull


def _frame(number: int) -> Frame:
    return Frame(str(number), b"", 0.0)


@pytest.mark.parametrize(("policy", "kept"), [("drop-oldest", ["3", "4"]), ("drop-newest", ["0", "1"])])
def test_a_full_line_drops_by_policy(policy: WhenFull, kept: list[str]) -> None:
    line = FrameLine(2, policy)

    assert all(line.put(_frame(number)) for number in range(5))

    frames = [line.take(0.0), line.take(0.0)]
    assert [frame.key for frame in frames if frame is not None] == kept
    assert (line.came, line.dropped, line.take(0.0)) == (5, 3, None)


def test_a_blocking_line_holds_its_source_and_loses_nothing() -> None:
    line = FrameLine(1, "block")
    thread = threading.Thread(target=lambda: [line.put(_frame(number)) for number in range(20)])
    thread.start()
    taken = [line.take(10.0) for _ in range(20)]
    thread.join(10.0)

    assert [frame.key for frame in taken if frame is not None] == [str(number) for number in range(20)]
    assert (line.came, line.dropped) == (20, 0)


def test_closing_lets_everybody_go() -> None:
    """A source that waits for room is told that there is none any more; what is in the line can still be taken."""
    line = FrameLine(1, "block")
    line.put(_frame(0))
    told: list[bool] = []
    thread = threading.Thread(target=lambda: told.append(line.put(_frame(1))))
    thread.start()
    wait_until(lambda: line.came == 2, 10.0, "the second frame waits")
    line.close()
    thread.join(10.0)

    assert told == [False] and not line.is_ended
    assert line.take(0.0) is not None and line.take(10.0) is None and line.is_ended


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 5), st.sampled_from(["drop-oldest", "drop-newest"]))
def test_every_frame_is_taken_dropped_or_waits(puts: list[bool], length: int, policy: WhenFull) -> None:
    """Whatever the order of putting and taking, in order and never more than the length."""
    line, number, taken = FrameLine(length, policy), 0, []
    for put in puts:
        if put:
            line.put(_frame(number))
            number += 1
        elif (frame := line.take(0.0)) is not None:
            taken.append(int(frame.key))
    waiting = []
    while (frame := line.take(0.0)) is not None:
        waiting.append(int(frame.key))

    assert len(waiting) <= length and taken + waiting == sorted(taken + waiting)
    assert len(taken) + len(waiting) + line.dropped == line.came == number
