"""The uniform quantizer keeps its error bound for whatever finite numbers it is given."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regatta_fleet.optimize.quantize.uniform import MAX_BITS, dequantize, error_bound, quantize
from regatta_protocol.errors import Rejected

_FINITE = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)


@st.composite
def _arrays(draw: st.DrawFn) -> npt.NDArray[np.float32]:
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    values = draw(st.lists(_FINITE, min_size=int(np.prod(shape)), max_size=int(np.prod(shape))))
    return np.array(values, np.float32).reshape(shape)


@given(values=_arrays(), bits=st.integers(1, MAX_BITS), data=st.data())
def test_a_value_comes_back_within_half_a_step(values: npt.NDArray[np.float32], bits: int, data: st.DataObject) -> None:
    axis = data.draw(st.none() | st.integers(-values.ndim, values.ndim - 1))

    quantized = quantize(values, bits, axis=axis)

    error = np.abs(dequantize(quantized).astype(np.float64) - values)
    assert (error <= error_bound(quantized)).all()
    assert int(quantized.levels.max()) <= 2**bits - 1
    assert quantized.levels.shape == values.shape


@given(values=_arrays(), bits=st.integers(1, 12))
def test_quantizing_again_changes_nothing_when_the_range_is_kept(values: npt.NDArray[np.float32], bits: int) -> None:
    bounds = (float(values.min()), float(values.max()))
    once = quantize(values, bits, bounds=bounds)

    again = quantize(dequantize(once), bits, bounds=bounds)

    if bounds[1] - bounds[0] > 1e-3 * max(abs(bounds[0]), abs(bounds[1])):  # else float32 itself blurs the levels
        assert (again.levels == once.levels).all()


def test_the_step_is_the_range_over_its_levels() -> None:
    quantized = quantize([-1.0, 0.0, 1.0], 8)

    assert quantized.step.item() == pytest.approx(2 / 255)
    assert quantized.levels.tolist() == [0, 128, 255]


def test_each_channel_has_its_own_range() -> None:
    values = np.array([[0.0, 1.0], [0.0, 1000.0]], np.float32)

    by_channel, whole = quantize(values, 4, axis=0), quantize(values, 4)

    assert by_channel.step.reshape(-1) == pytest.approx([1 / 15, 1000 / 15])
    assert dequantize(by_channel)[0, 1] == pytest.approx(1.0)
    assert dequantize(whole)[0, 1] == 0.0


@pytest.mark.parametrize("value", [0.0, -3.5, 1e-38, 7e30])
def test_a_constant_comes_back_exactly(value: float) -> None:
    values = np.full((3, 2), value, np.float32)

    quantized = quantize(values, 8, axis=1)

    assert (quantized.step == 0).all()
    assert (dequantize(quantized) == values).all()


def test_one_channel_and_one_number_are_fine() -> None:
    assert dequantize(quantize(np.array([[2.5]], np.float32), 1, axis=1)).item() == 2.5


def test_bounds_may_differ_by_channel() -> None:
    values = np.array([[0.2, 5.0], [0.2, 5.0]], np.float32)

    quantized = quantize(values, 8, axis=0, bounds=([[0.0], [0.0]], [[1.0], [10.0]]))

    assert dequantize(quantized).tolist() == [[pytest.approx(0.2, abs=0.002), 1.0], pytest.approx([0.2, 5.0], abs=0.02)]


def test_values_outside_of_given_bounds_saturate() -> None:
    quantized = quantize([-5.0, 0.5, 9.0], 8, bounds=(0.0, 1.0))

    assert dequantize(quantized) == pytest.approx([0.0, 0.5, 1.0], abs=1 / 510 + 1e-6)


@pytest.mark.parametrize(
    ("values", "bits", "axis", "bounds", "words"),
    [
        ([1.0, float("nan")], 8, None, None, "NaN"),
        ([float("inf")], 8, None, None, "infinity"),
        ([0.0, 1e39], 8, None, None, r"conv/weights: 1 of 2 .* \(infinite\) at \[1\]"),
        ([], 8, None, None, "empty"),
        ([1.0], 0, None, None, "0 bits"),
        ([1.0], 17, None, None, "17 bits"),
        ([1.0], 8, 1, None, "axis 1"),
        ([1.0], 8, None, (2.0, 1.0), "lower first"),
        ([1.0], 8, None, (0.0, float("nan")), "finite bounds"),
        ([1.0, 2.0], 8, None, ([0.0, 0.0, 0.0], 1.0), "do not broadcast"),
    ],
)
def test_what_cannot_be_quantized_is_refused_in_words(
    values: list[float], bits: int, axis: int | None, bounds: tuple[npt.ArrayLike, npt.ArrayLike] | None, words: str
) -> None:
    with pytest.raises(Rejected, match=words):
        quantize(values, bits, axis=axis, bounds=bounds, name="conv/weights")
