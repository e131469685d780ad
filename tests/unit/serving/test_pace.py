"""Slow is told from a slow moment, and drift from a hot afternoon."""

from __future__ import annotations

import pytest

from regatta_agent.serving.pace import Drift, Pace, is_faster

MS = 1_000_000


def _slow_after(pace: Pace, samples_ms: list[float], period_ms: float = 1.0) -> int | None:
    """Return after how many inferences the placement is called slow."""
    for number, sample in enumerate(samples_ms):
        if pace.add(int(sample * MS), int(number * period_ms * MS)):
            return number + 1
    return None


@pytest.mark.parametrize(
    ("samples_ms", "period_ms", "after"),
    [
        ([1.0] * 500, 1.0, None),
        ([2.9] * 500, 1.0, None),
        ([3.1] * 500, 1.0, 100),
        ([3.1] * 50 + [1.0] * 50 + [3.1] * 50 + [1.0] * 50, 1.0, None),
        ([1.0, 90.0, 90.0] * 100, 1.0, 100),
        ([1.0, 1.0, 1.0, 90.0, 90.0] * 100, 1.0, None),
        ([20.0] * 40, 20.0, 12),
        ([9.0] * 12, 2500.0, 10),
        ([9.0] * 40, 4000.0, None),
    ],
    ids=["sound", "within", "slow", "now and then", "majority", "minority", "long ones", "asked rarely", "too rarely"],
)
def test_two_slow_windows_in_a_row_are_slow(samples_ms: list[float], period_ms: float, after: int | None) -> None:
    """Windows of 50, of 0.1 s with 5 or more, or of 10 s; the median counts, against three times the race's 1 ms."""
    assert _slow_after(Pace(1000.0, 3.0), samples_ms, period_ms) == after


def test_without_a_race_nothing_is_slow() -> None:
    """There is nothing to compare with."""
    assert _slow_after(Pace(None, 3.0), [1000.0] * 500) is None


def test_drift_is_three_slow_looks_in_a_row_and_told_once() -> None:
    """A look within bounds, or another placement, begins anew."""
    drift = Drift()
    looks = [("a", 1.6), ("a", 1.6), ("a", 1.4), ("a", 1.6), ("a", 1.6), ("b", 1.6), ("b", 1.6), ("b", 9.0), ("b", 9.0)]

    assert [drift.add(*look) for look in looks] == [False] * 7 + [True, False]


def test_faster_is_clearly_so() -> None:
    """Nobody changes places for a few percent."""
    assert is_faster(79.0, 100.0)
    assert not is_faster(81.0, 100.0)
