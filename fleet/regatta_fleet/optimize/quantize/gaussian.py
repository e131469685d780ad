"""Quantization of bell-shaped values: the range is mean ± k · sigma, and what lies beyond saturates.

A narrower range has finer steps and more saturation. k is the one of the least expected squared error when a standard
normal number is rounded to the 2^bits evenly spaced levels from −k to k. With φ and Φ its density and distribution,
the error of the values in (a, b], which all become level l, is

    ∫ (x − l)² φ(x) dx = (1 + l²)·(Φ(b) − Φ(a)) + a·φ(a) − b·φ(b) + 2·l·(φ(b) − φ(a))

and the outermost levels take everything beyond, so rounding and clipping are both in the sum. (Max 1960, "Quantizing
for minimum distortion", whose table II these k agree with; the same trade for networks: Banner et al. 2019, section 3.)
It pays at few bits; at 8, the minimum and maximum do as well. Nothing here knows of models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from regatta_fleet.optimize.quantize.uniform import MAX_BITS, QuantizedArray, finite_values, other_axes, quantize
from regatta_protocol.errors import Rejected

__all__ = ["GaussianArray", "best_k", "expected_error", "quantize_gaussian"]

_GOLDEN = (math.sqrt(5) - 1) / 2
_LEAST_K, _GREATEST_K = 0.5, 8.0  # 1 bit is best at 0.80, 16 bits at 6.0


@dataclass(frozen=True)
class GaussianArray:
    """Quantized values (`uniform.dequantize` brings them back), the k of their range, and how much saturated.

    `saturated`: share in [0, 1] of the values outside of the range, float64, of the shape of `quantized.step`.
    """

    quantized: QuantizedArray
    k: float
    saturated: npt.NDArray[np.float64]


def quantize_gaussian(
    values: npt.ArrayLike, bits: int, *, axis: int | None = None, k: float | None = None, name: str = "the array"
) -> GaussianArray:
    """Return the values in `bits` bits over mean ± k · sigma, of all of them or of each channel.

    Args:
        values: finite numbers of any shape, not empty.
        bits: 1 to 16.
        axis: the channel axis; None takes one range for all.
        k: in place of the best for so many bits.
        name: what the values are called in a refusal.

    Raises:
        Rejected: for NaN, infinite or no values, or bits, axis or k that cannot be.
    """
    chosen = best_k(bits) if k is None else k
    if not (math.isfinite(chosen) and chosen > 0):
        raise Rejected(f"cannot quantize {name}: k is {chosen}, it must be above 0")
    wide = finite_values(values, name)
    others = other_axes(wide.ndim, axis, name)
    mean, sigma = wide.mean(others, keepdims=True), wide.std(others, keepdims=True)
    # A constant has no width, and its mean must not differ from it by rounding.
    constant = wide.min(others, keepdims=True) == wide.max(others, keepdims=True)
    mean = np.where(constant, wide.min(others, keepdims=True), mean)
    reach = np.where(constant, 0.0, chosen * sigma)
    lower, upper = mean - reach, mean + reach
    saturated = ((wide < lower) | (wide > upper)).mean(others, keepdims=True)
    return GaussianArray(quantize(wide, bits, axis=axis, bounds=(lower, upper), name=name), chosen, saturated)


@lru_cache(maxsize=MAX_BITS)
def best_k(bits: int) -> float:
    """Return the k of the least expected error for 1 to 16 bits, to three decimals.

    The error has one minimum over k, so the search is by golden section.

    Raises:
        Rejected: when bits are out of range.
    """
    low, high = _LEAST_K, _GREATEST_K
    while high - low > 1e-4:
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        if expected_error(bits, left) < expected_error(bits, right):
            high = right
        else:
            low = left
    return round((low + high) / 2, 3)


def expected_error(bits: int, k: float) -> float:
    """Return the mean squared error, in sigma², of normal values in `bits` bits over mean ± k · sigma.

    Raises:
        Rejected: when bits are out of range.
    """
    if not 1 <= bits <= MAX_BITS:
        raise Rejected(f"cannot quantize to {bits} bits: use 1 to {MAX_BITS}")
    levels = np.linspace(-k, k, 2**bits)
    edges = (levels[:-1] + levels[1:]) / 2
    density = np.exp(-(edges**2) / 2) / math.sqrt(2 * math.pi)
    below = np.array([math.erfc(-edge / math.sqrt(2)) / 2 for edge in edges])
    share = np.diff(below, prepend=0.0, append=1.0)
    moment = np.diff(edges * density, prepend=0.0, append=0.0)
    slope = np.diff(density, prepend=0.0, append=0.0)
    return float(np.sum((1 + levels**2) * share - moment + 2 * levels * slope))
