"""Waits between tries: jittered over the whole interval, and capped."""

from __future__ import annotations

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from regatta_protocol.backoff import backoff_s


@given(st.integers(0, 10_000), st.floats(0.001, 10), st.floats(0.001, 1000), st.integers(0, 2**32))
def test_the_back_off_is_jittered_and_capped(attempt: int, base_s: float, cap_s: float, seed: int) -> None:
    """Uniform between nothing and the exponential, never over the cap."""
    assert 0 <= backoff_s(attempt, base_s, cap_s, random.Random(seed)) <= min(cap_s, base_s * 2.0 ** min(attempt, 30))


def test_a_thousand_devices_do_not_come_back_at_once() -> None:
    """After a broker's restart the first tries spread over the whole base interval."""
    delays = sorted(backoff_s(0, 1.0, 120.0, random.Random(seed)) for seed in range(1000))

    assert delays[0] < 0.02 and delays[-1] > 0.98
    assert max(later - earlier for earlier, later in itertools.pairwise(delays)) < 0.02
