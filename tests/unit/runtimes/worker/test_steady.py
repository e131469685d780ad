"""The rule of Georges et al. on rounds that settle, that do not, and that settle late."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regatta_runtimes.worker.steady import WINDOW, is_steady, warmup_rounds


@pytest.mark.parametrize(
    ("medians_us", "steady", "warmup"),
    [
        ([], False, 0),
        ([100.0] * 4, False, 0),  # too few to tell
        ([100.0] * 5, True, 0),
        ([100.0, 101, 99, 100, 100], True, 0),
        ([100.0, 105, 95, 100, 100], False, 0),
        ([200.0, 150, *[100.0] * 10], True, 2),  # two cold rounds
        ([*[100.0] * 9, 150], False, 0),  # it had settled, and was then disturbed
        ([200.0] * 1 + [150.0, 130, 120, 100, 100, 100, 100, 100], True, 3),  # a third of nine at most
        ([100.0, 150] * 10, False, 0),  # never settles, so every round counts
    ],
)
def test_a_candidate_is_steady_when_its_last_rounds_hardly_vary(
    medians_us: list[float], steady: bool, warmup: int
) -> None:
    """Each row: medians of the rounds, whether the last ones are steady, and how many rounds were warm-up."""
    assert (is_steady(medians_us), warmup_rounds(medians_us)) == (steady, warmup)


@given(st.lists(st.floats(0.1, 1e6), max_size=40), st.floats(0.01, 100))
def test_the_rule_knows_no_unit_and_leaves_two_thirds(medians_us: list[float], scale: float) -> None:
    """A warm-up is at most a third, and the same window repeated is steady whatever its size."""
    assert warmup_rounds(medians_us) <= len(medians_us) // 3
    assert is_steady([scale] * WINDOW)
