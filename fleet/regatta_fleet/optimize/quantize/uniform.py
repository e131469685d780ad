"""Uniform quantization of arrays by minimum and maximum, for the whole tensor or channel by channel.

    step = (t_max − t_min) / (2^bits − 1)      q = round((t − t_min) / step)      t' = t_min + q · step

(Jacob et al. 2018, section 2, with the range's minimum in place of a zero point.) For t within [t_min, t_max],
|t' − t| <= step / 2, plus the rounding of float32 itself: `error_bound` gives both together. Values outside of a
given range saturate. Nothing here knows of models.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from regatta_protocol.errors import Rejected

__all__ = [
    "MAX_BITS",
    "QuantizedArray",
    "dequantize",
    "error_bound",
    "finite_values",
    "other_axes",
    "quantize",
]

MAX_BITS = 16  # above, float32's own 24 bits of mantissa begin to blur the steps

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class QuantizedArray:
    """Steps above the minimum, with what turns them back into values.

    `levels`: uint16, the shape of the values, each in 0..2^bits − 1. `minimum` and `step`: float64, broadcastable to
    that shape: one number for a tensor, one a channel (other axes 1). A range of zero width has step 0.
    """

    levels: npt.NDArray[np.uint16]
    minimum: npt.NDArray[np.float64]
    step: npt.NDArray[np.float64]
    bits: int


def quantize(
    values: npt.ArrayLike,
    bits: int,
    *,
    axis: int | None = None,
    bounds: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
    name: str = "the array",
) -> QuantizedArray:
    """Return the values in `bits` bits.

    Args:
        values: finite numbers of any shape, not empty.
        bits: 1 to 16.
        axis: the channel axis, whose every index gets a range of its own; None takes one range for all.
        bounds: (t_min, t_max) in place of the values' own, numbers or arrays that broadcast to the values (one range
            a channel has 1 along the other axes); values outside saturate.
        name: what the values are called in a refusal, for example the tensor's name.

    Raises:
        Rejected: for NaN, infinite or no values, or bits, axis or bounds that cannot be.
    """
    if not 1 <= bits <= MAX_BITS:
        raise Rejected(f"cannot quantize {name} to {bits} bits: use 1 to {MAX_BITS}")
    wide = finite_values(values, name)
    others = other_axes(wide.ndim, axis, name)
    if bounds is None:
        minimum, maximum = wide.min(others, keepdims=True), wide.max(others, keepdims=True)
    else:
        minimum, maximum = _checked_bounds(bounds, wide.shape, name)
    step = (maximum - minimum) / (2**bits - 1)
    safe = np.where(step > 0, step, 1.0)  # a constant: all levels 0, and the minimum gives it back
    levels = np.clip(np.rint((wide - minimum) / safe), 0, 2**bits - 1)
    levels = np.where(step > 0, levels, 0.0)
    return QuantizedArray(levels.astype(np.uint16), np.asarray(minimum), np.asarray(step), bits)


def dequantize(quantized: QuantizedArray) -> Floats:
    """Return the values that the levels stand for, float32, in the original shape."""
    values: Floats = (quantized.minimum + quantized.levels * quantized.step).astype(np.float32)
    return values


def error_bound(quantized: QuantizedArray) -> npt.NDArray[np.float64]:
    """Return the greatest |dequantize(quantize(t)) − t| within the range, broadcastable to the values.

    Half a step, plus half a unit in the last place of the result's float32.
    """
    largest = np.maximum(
        np.abs(quantized.minimum), np.abs(quantized.minimum + quantized.step * (2**quantized.bits - 1))
    )
    bound: npt.NDArray[np.float64] = quantized.step / 2 + largest * 2.0**-23 + np.finfo(np.float32).tiny
    return bound


def finite_values(values: npt.ArrayLike, name: str) -> npt.NDArray[np.float64]:
    """Return the values, rounded to float32, in float64.

    Raises:
        Rejected: naming the array and the first place, when one is NaN or infinite in float32, or there is none.
    """
    with np.errstate(over="ignore"):  # what overflows float32 is infinite here, and refused
        array = np.asarray(values, np.float32)
    if array.size == 0:
        raise Rejected(f"cannot quantize {name}: its shape {list(array.shape)} is empty")
    wrong = ~np.isfinite(array)
    if wrong.any():
        place = np.unravel_index(int(wrong.argmax()), array.shape)
        kind = "NaN" if np.isnan(array[place]) else "infinite"
        raise Rejected(
            f"cannot quantize {name}: {int(wrong.sum())} of {array.size} values are NaN or infinity, "
            f"the first ({kind}) at {[int(index) for index in place]}"
        )
    return array.astype(np.float64)


def other_axes(dimensions: int, axis: int | None, name: str) -> tuple[int, ...]:
    """Return the axes that a range is taken over: all but the channel axis.

    Raises:
        Rejected: when there is no such axis.
    """
    if axis is None:
        return tuple(range(dimensions))
    if not -dimensions <= axis < dimensions:
        raise Rejected(f"cannot quantize {name}: channel axis {axis} is outside of an array with {dimensions} axes")
    return tuple(index for index in range(dimensions) if index != axis % dimensions)


def _checked_bounds(
    bounds: tuple[npt.ArrayLike, npt.ArrayLike], shape: tuple[int, ...], name: str
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    lower, upper = (np.asarray(bound, np.float64) for bound in bounds)
    if not (np.isfinite(lower).all() and np.isfinite(upper).all() and (lower <= upper).all()):
        raise Rejected(f"cannot quantize {name}: the range {bounds} is none: give finite bounds, the lower first")
    try:
        fits = np.broadcast_shapes(lower.shape, upper.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise Rejected(
            f"cannot quantize {name}: bounds of shapes {list(lower.shape)} and {list(upper.shape)} do not broadcast "
            f"to its shape {list(shape)}"
        )
    return lower, upper
