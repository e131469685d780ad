"""A leak is told from what a runtime takes once, whatever the sizes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regatta_runtimes.worker.leak import goes_on, leaked_bytes_per_inference

MB = 1_000_000


@pytest.mark.parametrize(
    ("memory_mb", "inferences", "leaks"),
    [
        ([40, 41, 42, 43, 44], 400, True),
        ([40, 60, 60, 60, 60], 400, False),  # a cache that fills in the first round
        ([40, 41, 42, 43, 43], 400, False),  # the last round added nothing
        ([40, 41, 42, 43], 400, False),  # too few rounds to tell
        ([40, 40.05, 40.1, 40.15, 40.2], 400, False),  # an allocator's steps
        ([40, 41, 40, 42, 44], 400, False),  # it gave some back
        ([], 400, False),
        ([40 + 0.5 * (number // 3) for number in range(21)], 400, True),  # a heap that grows every third short round
        ([40 + min(number, 9) for number in range(21)], 400, False),  # a cache that was full half-way
        ([40, 41, 42, 43, 44], 1_000_000, False),  # under what malloc can hand out for each inference
    ],
)
def test_growth_in_every_round_is_a_leak_and_nothing_else_is(
    memory_mb: list[float], inferences: int, leaks: bool
) -> None:
    """Each row: memory after each round, inferences a round, and whether that is a leak."""
    memory = [int(size * MB) for size in memory_mb]

    found = leaked_bytes_per_inference(memory, [inferences] * len(memory))

    assert (found is not None) == leaks


@given(st.integers(0, 100 * MB), st.integers(1000, 100_000), st.lists(st.integers(150, 5000), min_size=5, max_size=20))
def test_what_an_inference_leaks_is_told_exactly(start: int, leak: int, inferences: list[int]) -> None:
    """A constant leak is reported as it is, whatever the rounds' lengths."""
    memory = [start]
    for made in inferences[1:]:
        memory.append(memory[-1] + leak * made)

    found = leaked_bytes_per_inference(memory, inferences)

    assert found == pytest.approx(leak)


@given(st.lists(st.integers(0, 10 * MB), min_size=4, max_size=7), st.integers(0, 6))
def test_a_round_that_takes_no_memory_acquits(steps: list[int], still: int) -> None:
    """However much the other rounds take."""
    steps[still % len(steps)] = 0
    memory = [0]
    for step in steps:
        memory.append(memory[-1] + step)

    assert leaked_bytes_per_inference(memory, [100] * len(memory)) is None


@pytest.mark.parametrize(
    ("grown_bytes", "inferences", "leaks"),
    [(480_000, 2400, True), (250_000, 2400, True), (0, 2400, False), (64_000, 2400, False), (100_000, 400, True)],
    ids=["as before", "a step of the heap short", "a cache that is full", "one that is nearly", "a short look"],
)
def test_only_a_leak_goes_on(grown_bytes: int, inferences: int, leaks: bool) -> None:
    """What looked like 200 bytes an inference either still does, or was a cache."""
    assert goes_on(200.0, grown_bytes, inferences) == leaks
