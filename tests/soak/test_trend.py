"""The soak's judgement: a leak is found, and noise, spikes and warming up are none."""

from __future__ import annotations

import random

import pytest

from soak.trend import trend_of

_MINUTE_S = 60.0


def series(leak_per_h: float, noise: float, *, minutes: int = 30, seed: int = 0) -> tuple[list[float], list[float]]:
    """Return a sample every 5 s of 25 MB that leaks; one in ten is a spike of 8 MB, and the first minutes warm up."""
    chance = random.Random(seed)
    times = [5.0 * number for number in range(minutes * 12)]
    values = []
    for time_s in times:
        warm = min(1.0, time_s / (minutes * _MINUTE_S / 6))
        spike = 8.0 if chance.random() < 0.1 else 0.0
        values.append(20.0 + 5.0 * warm + leak_per_h * time_s / 3600 + chance.gauss(0, noise) + spike)
    return times, values


@pytest.mark.parametrize("seed", range(20))
def test_noise_spikes_and_warming_up_are_no_drift(seed: int) -> None:
    """A level figure is not accused, whatever a run with faults does to single samples."""
    trend = trend_of(*series(0.0, 0.5, seed=seed), allowed=1.0, allowed_share=0.03)

    assert trend is not None
    assert not trend.drifts
    assert trend.low_per_h <= trend.slope_per_h <= trend.high_per_h


@pytest.mark.parametrize("seed", range(5))
def test_a_leak_is_found_through_the_same_noise(seed: int) -> None:
    """4 MB in half an hour is drift; the slope is told with its interval."""
    trend = trend_of(*series(8.0, 0.5, seed=seed), allowed=1.0, allowed_share=0.03)

    assert trend is not None
    assert trend.drifts
    assert trend.low_per_h <= 8.0 <= trend.high_per_h


def test_a_descriptor_a_minute_is_found() -> None:
    """Counts are whole numbers with ties, and drift all the same."""
    times = [5.0 * number for number in range(120)]
    trend = trend_of(times, [20.0 + time_s // 60 for time_s in times], allowed=1.0, allowed_share=0.0)

    assert trend is not None and trend.drifts


@pytest.mark.parametrize("count", [0, 1, 7])
def test_too_short_a_run_tells_nothing(count: int) -> None:
    """None, and not "no drift"."""
    assert trend_of([float(n) for n in range(count)], [1.0] * count, allowed=1.0, allowed_share=0.0) is None
