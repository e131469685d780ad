"""Figures are written with three digits, never as a false zero, and safely for a terminal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regatta_fleet import figures
from regatta_protocol.measurement import PairedDrop
from regatta_protocol.values import Accuracy, Power, unknown_power


@pytest.mark.parametrize(
    ("latency_us", "text"),
    [
        (None, "–"),
        (21.44, "21.4 µs"),
        (999.4, "999 µs"),
        (999.6, "1.00 ms"),
        (1250, "1.25 ms"),
        (84_210, "84.2 ms"),
        (999_700, "1.00 s"),
        (2_100_000, "2.10 s"),
    ],
)
def test_latency(latency_us: float | None, text: str) -> None:
    """The unit is chosen after rounding, so there is no "1000 µs"."""
    assert figures.latency(latency_us) == text


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(None, "–"), (812, "812 B"), (50_300, "50.3 KB"), (4_276_000, "4.28 MB"), (999_999, "1.00 MB")],
)
def test_size(size_bytes: int | None, text: str) -> None:
    """Sizes are decimal."""
    assert figures.size(size_bytes) == text


def test_accuracy_comes_with_its_interval() -> None:
    """The interval is Wilson's, in per cent."""
    assert figures.accuracy(Accuracy(correct=347, total=360)) == "96.4 % (93.9–97.9)"
    assert figures.accuracy(None) == "–"


def test_accuracy_lost_comes_with_its_interval() -> None:
    """In points; the reference is called so, and unknown is no zero."""
    drop = PairedDrop(reference="r", drop=0.006, low=-0.004, high=0.017, samples=360, available=360)

    assert figures.lost(drop) == "0.6 (-0.4–1.7)"
    assert figures.lost(drop.model_copy(update={"drop": 0.0, "low": 0.0, "high": 0.0})) == "ref"
    assert figures.lost(None) == "–"


def test_unknown_power_is_not_zero() -> None:
    """What was not measured is called unknown; an estimate is marked."""
    assert figures.power(unknown_power("no sensor")) == "unknown"
    assert figures.power(None) == "unknown"
    assert figures.power(Power(method="measured", power_mw=4120)) == "4.12 W"
    assert figures.power(Power(method="estimated", power_mw=812)) == "≈ 812 mW"


@pytest.mark.parametrize(
    ("at", "text"), [(None, "never"), (100.0, "now"), (101.0, "now"), (88.0, "12 s ago"), (-200.0, "5 min ago")]
)
def test_age(at: float | None, text: str) -> None:
    """Ages are rounded; a clock that is ahead does not give a negative one."""
    assert figures.age(at, now=100.0) == text


def test_text_of_strangers_cannot_move_the_cursor() -> None:
    """Escape sequences, line breaks and bidirectional overrides become spaces."""
    assert figures.one_line("a\x1b[31mred\x1b[0m\n\u202eb\x07") == "a [31mred [0m b"
    assert len(figures.one_line("x" * 10_000)) == 2001


@given(st.text())
def test_one_line_is_printable(text: str) -> None:
    """Whatever comes in, nothing unprintable goes out."""
    assert all(character.isprintable() for character in figures.one_line(text))


@given(st.floats(min_value=0, max_value=1e12), st.integers(min_value=0, max_value=10**18))
def test_every_magnitude_is_written(latency_us: float, size_bytes: int) -> None:
    """No magnitude fails; none is written with more than four digits before its unit."""
    assert figures.latency(latency_us)
    assert figures.size(size_bytes)


@pytest.mark.parametrize(("number", "text"), [(0, "0 devices"), (1, "1 device"), (12_345, "12,345 devices")])
def test_what_is_counted_agrees_with_its_number(number: int, text: str) -> None:
    """One is not told as "1 device(s)"."""
    assert figures.counted(number, "device") == text
