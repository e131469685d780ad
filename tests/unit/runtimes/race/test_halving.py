"""Who drops out of a final: intervals that hold what they promise, and nobody lost by chance."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regatta_runtimes.race.halving import Interval, dropouts, is_decided, ratio_interval

FIGURES = st.lists(st.floats(1, 1e6), min_size=1, max_size=200)


def _sure(ratio: float) -> Interval:
    return Interval(ratio, ratio, ratio)


@given(FIGURES, FIGURES)
def test_an_interval_holds_its_median_and_is_of_the_common_rounds(figures: list[float], reference: list[float]) -> None:
    """Low <= middle <= high, and rounds that only one of them ran change nothing."""
    common = min(len(figures), len(reference))

    interval = ratio_interval(figures, reference)

    assert interval.low <= interval.middle <= interval.high or common == 2  # a batch's median lies between its rounds
    assert interval == ratio_interval(figures[:common], reference[:common])


@given(FIGURES, st.floats(0.01, 100))
def test_what_slows_both_cancels_out(load: list[float], ratio: float) -> None:
    """However the rounds vary, a candidate that takes r times as long in each has the ratio r, without doubt."""
    interval = ratio_interval([us * ratio for us in load], load)

    assert (interval.low, interval.middle, interval.high) == pytest.approx((ratio, ratio, ratio))


@pytest.mark.parametrize(("rounds", "lasting"), [(7, 1), (16, 1), (64, 1), (64, 4), (200, 1)])
def test_the_interval_misses_the_true_ratio_as_rarely_as_it_says(rounds: int, lasting: int) -> None:
    """98 % hold it, also where a disturbance lasts for several rounds; here of 2000 trials, so 97 % is asked for."""
    random = Random(rounds)
    missed = 0
    for _ in range(2000):
        noise = [random.lognormvariate(0, 0.2) for _ in range(-(-rounds // lasting)) for _ in range(lasting)]
        interval = ratio_interval([1.3 * each for each in noise[:rounds]], [1.0] * rounds)
        missed += not interval.low <= 1.3 <= interval.high

    assert missed / 2000 < 0.03


@pytest.mark.parametrize(
    ("contenders", "allowance", "out"),
    [
        ({}, 1.5, []),
        ({"b": _sure(1.6)}, 1.5, ["b"]),
        ({"b": _sure(1.4)}, 1.5, []),
        ({"b": Interval(1.4, 2.0, 3.0)}, 1.5, []),  # it may be within the allowance
        ({"b": _sure(2), "c": _sure(3), "d": _sure(4)}, 1.5, ["d", "c"]),  # the slower half of four
        ({"b": _sure(1.1), "c": _sure(3), "d": Interval(1.0, 4, 9)}, 1.5, ["c"]),
    ],
)
def test_of_the_slower_half_those_that_are_surely_beyond_the_allowance_drop_out(
    contenders: dict[str, Interval], allowance: float, out: list[str]
) -> None:
    """Each row: ratios to the leader, what is let in, who drops out."""
    assert dropouts(contenders, allowance) == out


@pytest.mark.parametrize(
    ("ratio", "decided"),
    [
        (_sure(1.2), True),
        (Interval(1.0, 1.1, 1.3), True),  # surely not faster
        (Interval(0.995, 1.001, 1.008), True),  # alike: it does not matter which
        (Interval(0.995, 1.02, 1.05), False),
        (Interval(0.9, 1.0, 1.008), False),
    ],
)
def test_a_final_is_decided_when_no_other_can_be_ahead_or_it_does_not_matter(ratio: Interval, decided: bool) -> None:
    """One contender that is undecided leaves it open."""
    assert is_decided({"b": ratio, "c": _sure(2)}) == decided
    assert is_decided({})
