"""The Gaussian quantizer takes the range of the least expected error, and says what saturates."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from regatta_fleet.optimize.quantize.gaussian import best_k, expected_error, quantize_gaussian
from regatta_fleet.optimize.quantize.uniform import MAX_BITS, dequantize, error_bound, quantize
from regatta_protocol.errors import Rejected

_FINITE = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
_ARRAYS = hnp.arrays(np.float32, hnp.array_shapes(max_dims=4, max_side=5), elements=_FINITE)


@pytest.mark.parametrize(
    ("bits", "step", "error"),
    [(1, 1.596, 0.3634), (2, 0.9957, 0.1188), (3, 0.5860, 0.03744), (4, 0.3352, 0.01154), (5, 0.1881, 0.003495)],
)
def test_k_is_that_of_max_1960(bits: int, step: float, error: float) -> None:
    """Table II: the step of the best quantizer with evenly spaced levels, and its mean squared error."""
    k = best_k(bits)

    assert 2 * k / (2**bits - 1) == pytest.approx(step, abs=1e-3)
    assert expected_error(bits, k) == pytest.approx(error, rel=5e-3)


@pytest.mark.parametrize("bits", [2, 4, 6])
def test_the_expected_error_is_the_one_that_samples_show(bits: int) -> None:
    values = np.random.RandomState(1).standard_normal(400_000)

    found = quantize_gaussian(values, bits)

    error = float(np.mean((dequantize(found.quantized) - values) ** 2))
    assert error == pytest.approx(expected_error(bits, best_k(bits)), rel=0.03)


@given(bits=st.integers(2, 12), other=st.floats(0.6, 7.9))
def test_no_other_k_is_better(bits: int, other: float) -> None:
    assert expected_error(bits, best_k(bits)) <= expected_error(bits, other) * (1 + 1e-5)


def test_more_bits_reach_further_and_lose_less() -> None:
    reaches = [best_k(bits) for bits in range(1, MAX_BITS + 1)]
    errors = [expected_error(bits, best_k(bits)) for bits in range(1, MAX_BITS + 1)]

    assert reaches == sorted(reaches)
    assert errors == sorted(errors, reverse=True) and errors[-1] > 0


@given(values=_ARRAYS, bits=st.integers(2, MAX_BITS), data=st.data())
def test_what_is_in_the_range_comes_back_within_half_a_step(
    values: npt.NDArray[np.float32], bits: int, data: st.DataObject
) -> None:
    axis = data.draw(st.none() | st.integers(-values.ndim, values.ndim - 1))

    found = quantize_gaussian(values, bits, axis=axis)

    lower = found.quantized.minimum
    upper = lower + found.quantized.step * (2**bits - 1)
    inside = (values >= lower) & (values <= upper)
    error = np.abs(dequantize(found.quantized).astype(np.float64) - values)
    assert (error <= np.where(inside, error_bound(found.quantized), np.inf)).all()
    assert ((found.saturated >= 0) & (found.saturated <= 1)).all()


@given(values=_ARRAYS, bits=st.integers(2, 8))
def test_saturation_is_bounded_by_chebyshev(values: npt.NDArray[np.float32], bits: int) -> None:
    """At most 1 / k² of any values lie beyond k sigma, whatever they are distributed like."""
    found = quantize_gaussian(values, bits)

    assert found.saturated.item() <= 1 / found.k**2 + 1e-9


def test_four_bits_of_a_bell_lose_less_than_by_minimum_and_maximum() -> None:
    values = np.random.RandomState(2).standard_normal(10_000).astype(np.float32)

    gaussian = np.mean((dequantize(quantize_gaussian(values, 4).quantized) - values) ** 2)
    ends = np.mean((dequantize(quantize(values, 4)) - values) ** 2)

    assert gaussian < 0.6 * ends


def test_the_saturated_share_is_counted_by_channel() -> None:
    values = np.zeros((2, 100), np.float32)
    values[0, 0], values[1] = 50.0, np.tile([1.0, -1.0], 50)

    found = quantize_gaussian(values, 4, axis=0)

    assert found.saturated.reshape(-1).tolist() == [0.01, 0.0]


def test_a_constant_comes_back_exactly() -> None:
    found = quantize_gaussian(np.full((3, 7), 0.1, np.float32), 4, axis=0)

    assert (dequantize(found.quantized) == np.float32(0.1)).all()
    assert (found.saturated == 0).all()


@pytest.mark.parametrize(
    ("values", "bits", "axis", "k", "words"),
    [
        ([1.0, float("nan")], 4, None, None, r"conv/weights: 1 of 2 values are NaN"),
        ([], 4, None, None, "conv/weights: its shape"),
        ([1.0], 0, None, None, "0 bits"),
        ([1.0], 17, None, 2.0, "17 bits"),
        ([1.0], 4, 2, None, "axis 2"),
        ([1.0], 4, None, 0.0, "k is 0.0"),
        ([1.0], 4, None, float("nan"), "k is nan"),
    ],
)
def test_what_cannot_be_quantized_is_refused_in_words(
    values: list[float], bits: int, axis: int | None, k: float | None, words: str
) -> None:
    with pytest.raises(Rejected, match=words):
        quantize_gaussian(values, bits, axis=axis, k=k, name="conv/weights")
