"""A variant is judged by the answers it loses and gains on the same samples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regatta_fleet.optimize.compare import Comparison, compare, refusal

_ONE_HOT = np.eye(4, dtype=np.float32)


def test_lost_and_gained_answers_are_counted() -> None:
    labels = np.array([0, 1, 2, 3])
    reference = _ONE_HOT[[0, 1, 2, 0]]  # the last is wrong
    answers = _ONE_HOT[[0, 0, 2, 3]]  # the second is lost, the last gained

    found = compare(answers, reference, labels)

    assert (found.correct, found.lost, found.gained, found.drop) == (3, 1, 1, 0.0)
    assert found.p_value == 1.0


def test_the_same_answers_have_no_drop_and_all_signal() -> None:
    found = compare(_ONE_HOT, _ONE_HOT, np.arange(4))

    assert found.drop == 0.0
    assert found.snr_db > 100
    assert refusal(found, 0.0) is None


def test_over_the_budget_is_refused_with_numbers() -> None:
    found = Comparison(samples=100, snr_db=20.0, correct=90, gained=1, lost=4)

    assert refusal(found, 0.03) is None
    reason = refusal(found, 0.02)
    assert reason is not None
    assert "3.0 points" in reason and "4 answers lost, 1 gained" in reason and "allows 2.0" in reason


def test_without_labels_the_noise_decides() -> None:
    assert compare(_ONE_HOT, _ONE_HOT, None).drop is None
    assert refusal(Comparison(samples=10, snr_db=12.0), 0.02) is None
    assert "dB" in (refusal(Comparison(samples=10, snr_db=3.0), 0.02) or "")


@pytest.mark.parametrize(("lost", "gained", "p"), [(5, 5, 1.0), (10, 0, 2 / 1024), (1, 0, 1.0), (8, 2, 0.109375)])
def test_mcnemars_exact_test(lost: int, gained: int, p: float) -> None:
    assert Comparison(100, 0.0, 50, gained, lost).p_value == pytest.approx(p)


@given(lost=st.integers(0, 3000), gained=st.integers(0, 3000))
def test_p_is_a_probability_whatever_the_counts(lost: int, gained: int) -> None:
    p = Comparison(10_000, 0.0, 5000, gained, lost).p_value

    assert p is not None
    assert 0.0 <= p <= 1.0
