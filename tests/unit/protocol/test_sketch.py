"""Latency sketches keep their error and merge exactly."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regatta_protocol import sketch
from regatta_protocol.ids import ModelName
from regatta_protocol.values import ServingWindow

latencies = st.lists(st.floats(min_value=0.01, max_value=1e9), min_size=1, max_size=300)


def _sketch_of(values: list[float]) -> dict[int, int]:
    counts: dict[int, int] = {}
    for value in values:
        sketch.add(counts, value)
    return counts


@given(latencies, st.floats(min_value=0, max_value=1))
def test_a_quantile_is_within_one_percent(values: list[float], q: float) -> None:
    """Every quantile lies within 1 % of the exact one."""
    exact = sorted(values)[math.floor(q * (len(values) - 1))]

    estimate = sketch.quantile(_sketch_of(values), q)

    assert estimate is not None
    assert abs(estimate - exact) <= exact * sketch.RELATIVE_ERROR * (1 + 1e-6)


@given(latencies, latencies)
def test_merging_is_counting_together(left: list[float], right: list[float]) -> None:
    """The merged sketch is the sketch of all values."""
    assert sketch.merge([_sketch_of(left), _sketch_of(right)]) == _sketch_of(left + right)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=True), max_size=50))
def test_any_value_falls_into_a_bounded_number_of_buckets(values: list[float]) -> None:
    """Zero, negative and infinite values are held to the ends."""
    counts = _sketch_of(values)

    assert sketch.total(counts) == len(values)
    assert all(sketch.bucket_of(sketch.LOWEST) <= bucket <= sketch.bucket_of(sketch.HIGHEST) for bucket in counts)
    assert sketch.bucket_of(sketch.HIGHEST) - sketch.bucket_of(sketch.LOWEST) < 1728


def test_bucket_i_holds_what_the_message_says() -> None:
    """Bucket i holds (g^(i-1), g^i], as ServingWindow documents."""
    for i in (1, 200, 500):
        assert sketch.bucket_of(sketch.GAMMA ** (i - 0.5)) == i


def test_an_empty_sketch_has_no_quantile() -> None:
    """Unknown is None, not 0; and a quantile outside [0, 1] is a mistake."""
    assert sketch.quantile({}, 0.5) is None
    with pytest.raises(ValueError, match="quantile"):
        sketch.quantile({1: 1}, 1.5)


@given(
    st.lists(
        st.dictionaries(st.sampled_from(("queue", "infer")), st.lists(st.floats(1e-3, 1e9), max_size=9), max_size=2),
        min_size=1,
        max_size=9,
    ),
    st.sampled_from((0.0, 0.5, 0.99, 1.0)),
)
def test_sketches_by_name_merge_as_one_sketch_of_all_values(parts: list[dict[str, list[float]]], q: float) -> None:
    """Whichever windows have which names: each name's quantile is within 1 % of that of all of its values."""
    merged = sketch.merge_named([{name: _sketch_of(values) for name, values in part.items()} for part in parts])

    for name in ("queue", "infer"):
        values = sorted(value for part in parts for value in part.get(name, ()))
        assert (name in merged) == any(name in part for part in parts)
        assert sketch.total(merged.get(name, {})) == len(values)
        if values:
            found = sketch.quantile(merged[name], q)
            assert found == pytest.approx(values[int(q * (len(values) - 1))], rel=sketch.RELATIVE_ERROR * 1.001)


def test_the_widest_sketch_fits_a_window() -> None:
    """A window takes a sketch with every bucket in use."""
    low, high = sketch.bucket_of(sketch.LOWEST), sketch.bucket_of(sketch.HIGHEST)
    window = ServingWindow(
        model=ModelName("m"), version=1, placement="litert/int8/none/t1", start=0, stop=1, requests=1, errors=0,
        latency_counts=dict.fromkeys(range(low, high + 1), 1),
    )  # fmt: skip

    assert len(window.latency_counts) == high - low + 1
