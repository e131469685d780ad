"""Quantities of a policy are read with their units, and refused with a right example."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regatta_protocol.errors import Rejected
from regatta_protocol.quantity import parse_latency_us, parse_power_mw, parse_size_bytes, parse_temperature_c

Parse = Callable[[str], float]


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (parse_latency_us, "500us", 500.0),
        (parse_latency_us, "500 µs", 500.0),
        (parse_latency_us, "5ms", 5000.0),
        (parse_latency_us, ".2S", 200_000.0),
        (parse_power_mw, "2500mW", 2500.0),
        (parse_power_mw, "2.5 W", 2500.0),
        (parse_size_bytes, "64MiB", 64 << 20),
        (parse_size_bytes, "50 MB", 50_000_000),
        (parse_size_bytes, "0.5gib", 1 << 29),
        (parse_temperature_c, "75", 75.0),
        (parse_temperature_c, "75C", 75.0),
        (parse_temperature_c, "-10 °C", -10.0),
    ],
)
def test_as_people_write_them(parse: Parse, text: str, value: float) -> None:
    """Units in any case, with or without a space."""
    assert parse(text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("parse", "text", "example"),
    [
        (parse_latency_us, "5", "5ms"),
        (parse_latency_us, "0ms", "5ms"),
        (parse_latency_us, "-1ms", "5ms"),
        (parse_latency_us, "5 min", "5ms"),
        (parse_power_mw, "3", "2.5W"),
        (parse_size_bytes, "64", "64MiB"),
        (parse_size_bytes, "0.0001kb", "64MiB"),
        (parse_temperature_c, "hot", "75C"),
        (parse_temperature_c, "-400", "75C"),
        (parse_temperature_c, "nan", "75C"),
        (parse_temperature_c, "inf", "75C"),
    ],
)
def test_what_is_none_is_refused_with_an_example(parse: Parse, text: str, example: str) -> None:
    """A number without its unit may be meant in several ways, and is refused."""
    with pytest.raises(Rejected, match=example):
        parse(text)


@given(st.text(max_size=20))
def test_no_text_is_read_as_a_size_by_accident(text: str) -> None:
    """Any text is a size above 0 or refused; nothing else comes out."""
    with contextlib.suppress(Rejected):
        assert parse_size_bytes(text) >= 1
