"""A worker's start that gives way to whoever else wants the processor."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from polling import wait_until
from regatta_agent.serving import giving_way


def policies() -> set[int]:
    """Return the scheduling policies of this process's threads."""
    found = set()
    for entry in Path("/proc/self/task").iterdir():
        try:
            found.add(os.sched_getscheduler(int(entry.name)))
        except ProcessLookupError:
            continue
    return found


@pytest.fixture
def _competing() -> Iterator[None]:
    """Compete again after the test, whatever came of it."""
    yield
    giving_way.end()


def may_come_back() -> bool:
    giving_way.begin()
    gives_way = os.sched_getscheduler(0) == os.SCHED_IDLE
    giving_way.end()
    return gives_way


needs_right = pytest.mark.skipif(not may_come_back(), reason="needs RLIMIT_NICE of 20 or CAP_SYS_NICE")


@needs_right
@pytest.mark.usefixtures("_competing")
def test_threads_give_way_until_the_end_and_then_none_does() -> None:
    """A thread that a runtime has started meanwhile competes again too."""
    done = threading.Event()
    giving_way.begin()
    others = [threading.Thread(target=done.wait) for _ in range(3)]
    for thread in others:
        thread.start()
    inherited = [os.sched_getscheduler(thread.native_id or 0) for thread in others]
    giving_way.end()
    after = policies()
    done.set()
    for thread in others:
        thread.join()
    assert inherited == [os.SCHED_IDLE] * 3
    assert os.SCHED_IDLE not in after


@needs_right
@pytest.mark.usefixtures("_competing")
def test_threads_that_are_there_give_way_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that ends has many; not for ever, on a board whose processor is all taken."""
    monkeypatch.setattr(giving_way, "LIMIT_S", 0.3)
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()
    giving_way.begin()
    found = [os.sched_getscheduler(number) for number in (0, other.native_id or 0)]
    wait_until(lambda: os.SCHED_IDLE not in policies(), 20.0, "it competes again")
    done.set()
    other.join()
    assert found == [os.SCHED_IDLE] * 2


@needs_right
@pytest.mark.usefixtures("_competing")
def test_it_competes_again_by_itself_where_nothing_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next version comes on a board whose processor is all taken."""
    monkeypatch.setattr(giving_way, "LIMIT_S", 0.05)
    giving_way.begin()
    assert os.sched_getscheduler(0) == os.SCHED_IDLE
    wait_until(lambda: os.SCHED_IDLE not in policies(), 20.0, "it competes again")


@pytest.mark.usefixtures("_competing")
def test_without_the_right_to_come_back_it_never_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that could not come back would be idle for its whole life."""
    real, mine = os.sched_setscheduler, threading.get_native_id()
    asked: list[tuple[int, int]] = []

    def refused(thread: int, policy: int, parameters: os.sched_param) -> None:
        asked.append((threading.get_native_id(), policy))
        if policy == os.SCHED_OTHER:
            raise PermissionError(1, "Operation not permitted")
        if threading.get_native_id() == mine:
            real(thread, policy, parameters)

    monkeypatch.setattr(os, "sched_setscheduler", refused)
    giving_way.begin()
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
    assert [thread for thread, _ in asked if thread == mine] == []


def test_to_end_what_has_not_begun_changes_nothing() -> None:
    """A worker that was not told to give way keeps the policy that its service was given."""
    before, began = policies(), time.monotonic()
    giving_way.end()
    assert policies() == before
    assert time.monotonic() - began < 5.0
