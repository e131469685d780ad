"""What waits: best priority first, then first come first served; the late ones leave and are told."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from regatta_agent.serving.waiting import Waiting


@dataclass(frozen=True)
class _Item:
    number: int
    priority: int
    deadline: int | None


_ITEMS = st.lists(st.tuples(st.integers(1, 10), st.none() | st.integers(0, 100)), max_size=30)


@given(_ITEMS, st.integers(0, 100), st.integers(0, 40))
def test_each_item_leaves_once_in_order_or_late(drawn: list[tuple[int, int | None]], now: int, count: int) -> None:
    """Late ones and only those expire, in order of arrival; the rest comes by priority and arrival; none is lost."""
    items = [_Item(number, priority, deadline) for number, (priority, deadline) in enumerate(drawn)]
    waiting: Waiting[_Item] = Waiting()
    for item in items:
        waiting.put(item, item.priority, item.deadline)

    late = waiting.expire(now)
    first = waiting.take(count)
    rest = waiting.take(len(items))

    assert late == [item for item in items if item.deadline is not None and item.deadline <= now]
    timely = [item for item in items if item not in late]
    assert first + rest == sorted(timely, key=lambda item: (item.priority, item.number))
    assert len(first) == min(count, len(timely))
    assert len(waiting) == 0


def test_the_soonest_deadline_is_never_missed() -> None:
    """soonest_ns may be early after a take, never late."""
    waiting: Waiting[str] = Waiting()
    waiting.put("a", deadline_ns=50)
    waiting.put("b", deadline_ns=20)
    waiting.put("c")

    assert waiting.soonest_ns == 20
    assert waiting.expire(30) == ["b"]
    assert waiting.soonest_ns == 50
    assert waiting.take() == ["a"]
    assert waiting.expire(60) == []
    assert waiting.soonest_ns is None
