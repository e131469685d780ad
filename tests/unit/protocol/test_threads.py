"""Threads that begin in time or not at all: whoever starts one is told, and never waits for ever."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from unittest import mock

import pytest

from polling import wait_until
from regatta_protocol import threads
from regatta_protocol.errors import Exhausted
from regatta_protocol.threads import BoundedThread


def test_it_works_until_its_end_and_is_waited_for() -> None:
    """Alive from its start to its end, and known from inside."""
    go_on, inside = threading.Event(), list[bool]()

    def work() -> None:
        inside.append(thread.is_current())
        assert go_on.wait(10)

    thread = BoundedThread(work, "work")
    assert not thread.is_alive()
    thread.start()
    assert thread.is_alive()
    thread.join(0.01)
    assert thread.is_alive(), "joining has an end of its own"
    go_on.set()
    thread.join(10)

    assert (thread.is_alive(), thread.is_current(), inside) == (False, False, [True])


def test_an_ended_thread_keeps_nothing_of_its_work() -> None:
    """Whoever holds a thread of its own is freed with the last name for it, and waits for no collection of garbage."""

    class Owner:
        def __init__(self) -> None:
            self.thread = BoundedThread(self.work, "work")

        def work(self) -> None:
            """Be done."""

    owner = Owner()
    gone = weakref.ref(owner)
    owner.thread.start()
    owner.thread.join(10)
    gc.disable()
    try:
        del owner
        wait_until(lambda: gone() is None, 10, "the owner is freed")
    finally:
        gc.enable()


def test_work_that_raises_has_ended() -> None:
    """Nobody waits for a thread that is gone."""
    thread = BoundedThread(mock.Mock(side_effect=SystemExit), "work")
    thread.start()
    thread.join(10)

    assert not thread.is_alive()


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()])
def test_a_board_without_threads_says_so(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """As an error that passes, with the name of what was to be done."""
    monkeypatch.setattr("_thread.start_new_thread", mock.Mock(side_effect=error))

    with pytest.raises(Exhausted, match="no thread could be started for reading"):
        BoundedThread(mock.Mock(), "reading").start()


def test_a_thread_that_dies_before_it_begins_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one does that finds no memory; one that comes too late does nothing, for nobody counts on it any more."""
    late: list[Callable[[], None]] = []
    monkeypatch.setattr("_thread.start_new_thread", lambda run, _arguments: late.append(run))
    monkeypatch.setattr(threads, "_BEGIN_S", 0.01)
    work = mock.Mock()
    thread = BoundedThread(work, "reading")

    with pytest.raises(Exhausted, match=r"not begun within 0\.01 s"):
        thread.start()
    late[0]()
    thread.join(10)
    assert not thread.is_alive()
    work.assert_not_called()
