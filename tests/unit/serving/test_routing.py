"""Join-shortest-expected-delay: which placement takes a request, and what that does for many."""

from __future__ import annotations

import heapq

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regatta_agent.serving.routing import first_to_be_done


@pytest.mark.parametrize(
    ("delays", "chosen"),
    [([5.0], 0), ([5.0, 4.0], 1), ([4.0, 4.0], 0), ([100.0, 7.0, 8.0], 1)],
)
def test_the_least_delay_wins(delays: list[float], chosen: int) -> None:
    """Ties go to the first, the race's winner."""
    assert first_to_be_done(delays) == chosen


def test_nobody_to_choose_from_is_an_error() -> None:
    """There is always a first placement."""
    with pytest.raises(ValueError, match="empty"):
        first_to_be_done([])


def _finished(services: list[int], gaps: list[int]) -> list[int]:
    """Return how long each request took, from its arrival, on servers that take so long for one."""
    free_at, leaving = [0] * len(services), [list[int]() for _ in services]
    now, took = 0, []
    for gap in gaps:
        now += gap
        for queue in leaving:
            while queue and queue[0] <= now:
                heapq.heappop(queue)
        pending = [len(queue) for queue in leaving]
        chosen = first_to_be_done([(count + 1) * service for count, service in zip(pending, services, strict=True)])
        free_at[chosen] = max(now, free_at[chosen]) + services[chosen]
        heapq.heappush(leaving[chosen], free_at[chosen])
        took.append(free_at[chosen] - now)
    return took


@given(st.integers(1, 50), st.integers(1, 50), st.lists(st.integers(0, 60), min_size=1, max_size=60))
def test_a_second_placement_harms_nobody(fast: int, extra: int, gaps: list[int]) -> None:
    """Whatever its speed, no request waits longer than the whole queue before it would take on the first alone."""
    with_second = _finished([fast, fast + extra], gaps)

    assert max(with_second) <= fast * len(gaps)


@given(st.integers(1, 20), st.integers(1, 4))
def test_together_they_do_more(fast: int, ratio: int) -> None:
    """A burst is done in the time of both speeds added, but for the last request of the slower."""
    slow, burst = fast * ratio, 100

    longest = max(_finished([fast, slow], [0] * burst))

    assert longest <= burst * fast * slow / (fast + slow) + slow
