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

__all__ = ["MAX_BITS", "QuantizedArray", "dequantize", "error_bound", "quantize"]

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
    values: npt.ArrayLike, bits: int, *, axis: int | None = None, bounds: tuple[float, float] | None = None
) -> QuantizedArray:
    """Return the values in `bits` bits.

    Args:
        values: finite numbers of any shape, not empty.
        bits: 1 to 16.
        axis: the channel axis, whose every index gets a range of its own; None takes one range for all.
        bounds: (t_min, t_max) in place of the values' own; values outside saturate.

    Raises:
        Rejected: for NaN, infinite or no values, or bits, axis or bounds that cannot be.
    """
    array = np.asarray(values, np.float32)
    if not 1 <= bits <= MAX_BITS:
        raise Rejected(f"cannot quantize to {bits} bits: use 1 to {MAX_BITS}")
    if array.size == 0 or not np.isfinite(array).all():
        raise Rejected(f"cannot quantize an array of shape {list(array.shape)} that is empty, or holds NaN or infinity")
    wide = array.astype(np.float64)
    if bounds is not None:
        if not (np.isfinite(bounds).all() and bounds[0] <= bounds[1]):
            raise Rejected(f"the range {bounds} is none: give finite bounds, the lower first")
        minimum, maximum = np.float64(bounds[0]).reshape(()), np.float64(bounds[1]).reshape(())
    else:
        others = _other_axes(array.ndim, axis)
        minimum, maximum = wide.min(others, keepdims=True), wide.max(others, keepdims=True)
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


def _other_axes(dimensions: int, axis: int | None) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(dimensions))
    if not -dimensions <= axis < dimensions:
        raise Rejected(f"channel axis {axis} is outside of an array with {dimensions} axes")
    return tuple(index for index in range(dimensions) if index != axis % dimensions)
