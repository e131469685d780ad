"""The paired difference of two accuracies: published values, and what must hold for any counts."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regatta_runtimes.choice.paired import RightAnswers, paired_drop, right_answers, tango_interval


@st.composite
def counts(draw: st.DrawFn) -> tuple[int, int, int]:
    """Draw lost, won and samples that can be."""
    samples = draw(st.integers(1, 2000))
    lost = draw(st.integers(0, samples))
    return lost, draw(st.integers(0, samples - lost)), samples


def test_the_published_example() -> None:
    """Airway hyper-responsiveness of Fagerland et al. 2014, 1 and 7 discordant of 21, by Tango: −0.517 to −0.026."""
    low, high = tango_interval(1, 7, 21)

    assert (round(low, 3), round(high, 3)) == (-0.517, -0.026)


@given(st.integers(1, 5000))
def test_without_a_discordant_sample_the_interval_is_wilsons(samples: int) -> None:
    """With no discordant sample the score interval has the closed form ± z² / (n + z²)."""
    z = 1.959963984540054

    low, high = tango_interval(0, 0, samples)

    assert high == pytest.approx(z * z / (samples + z * z), rel=1e-6)
    assert low == pytest.approx(-high)


@given(counts())
def test_the_interval_holds_the_difference_and_is_symmetric(drawn: tuple[int, int, int]) -> None:
    """Within [−1, 1], around the estimate; exchanging the two candidates mirrors it."""
    lost, won, samples = drawn
    estimate = (lost - won) / samples

    low, high = tango_interval(lost, won, samples)

    assert -1 <= low <= estimate <= high <= 1
    assert list(tango_interval(won, lost, samples)) == pytest.approx([-high, -low], abs=1e-9)


@given(counts(), st.integers(2, 10))
def test_more_of_the_same_narrows_the_interval(drawn: tuple[int, int, int], factor: int) -> None:
    """The same shares over more samples are known better."""
    lost, won, samples = drawn

    low, high = tango_interval(lost, won, samples)
    closer_low, closer_high = tango_interval(factor * lost, factor * won, factor * samples)

    assert closer_high - closer_low <= high - low + 1e-9


@pytest.mark.parametrize("samples", [10, 40])
@pytest.mark.parametrize("p", [0.05, 0.2])
def test_the_interval_holds_its_level(samples: int, p: float) -> None:
    """Summed over every outcome of a trinomial with equal discordant shares, it misses 0 in about 5 % of the cases."""
    missed = 0.0
    for lost in range(samples + 1):
        for won in range(samples + 1 - lost):
            low, high = tango_interval(lost, won, samples)
            if low > 0 or high < 0:
                ways = math.comb(samples, lost) * math.comb(samples - lost, won)
                missed += ways * p ** (lost + won) * (1 - 2 * p) ** (samples - lost - won)

    assert missed <= 0.07


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=300), st.integers(0, 50))
def test_bits_survive_and_are_compared_sample_by_sample(pairs: list[tuple[bool, bool]], more: int) -> None:
    """What a worker packs is what is counted; the longer evaluation is cut to the shorter one."""
    reference = right_answers([one for one, _ in pairs], len(pairs) + more)
    candidate = right_answers([two for _, two in pairs] + [True] * more, len(pairs) + more)

    drop = paired_drop("litert/v/none/t1", reference, candidate)

    assert int(reference.text(), 16) == reference.bits
    assert drop is not None
    assert (drop.samples, drop.available) == (len(pairs), len(pairs) + more)
    assert drop.drop == pytest.approx((sum(a for a, _ in pairs) - sum(b for _, b in pairs)) / len(pairs))
    assert reference.accuracy.correct == sum(one for one, _ in pairs)


def test_nothing_in_common_is_no_difference() -> None:
    """Unknown is None."""
    assert paired_drop("r", RightAnswers(0, 0, 9), right_answers([True], 9)) is None
