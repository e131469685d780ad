"""What the outputs of a layer see of its input, as rows of a matrix: a convolution is then a matrix product."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from regatta_fleet.optimize.model_file import schema

__all__ = ["layer_patches", "some_rows"]

Floats = npt.NDArray[np.float32]

_MAX_ROWS = 16_384  # rows of a least-squares problem: 7 for each unknown of a 3 × 3 × 256 layer
_ROWS_SEED = 0


def some_rows(count: int) -> npt.NDArray[np.int64]:
    """Return the rows to solve with, ascending: all, or a seeded draw of 16,384."""
    if count <= _MAX_ROWS:
        return np.arange(count)
    return np.sort(np.random.RandomState(_ROWS_SEED).choice(count, _MAX_ROWS, replace=False))


def layer_patches(x: Floats, operator: Any, kind: str, kernel: tuple[int, int]) -> Floats:  # noqa: ANN401  # OperatorT
    """Return what each output of the layer sees, float32 [outputs, kh·kw·c]; for FULLY_CONNECTED, its rows.

    Args:
        x: activations [n, h, w, c], or anything of shape [n, …] for FULLY_CONNECTED.

    Padding SAME as in TFLite: the odd row or column goes to the end.
    """
    if kind == "FULLY_CONNECTED":
        return x.reshape(len(x), -1)
    options = operator.builtinOptions
    stride, dilation = (options.strideH, options.strideW), (options.dilationHFactor, options.dilationWFactor)
    padding = [(0, 0)]
    for axis in (0, 1):
        size, reach = x.shape[1 + axis], (kernel[axis] - 1) * dilation[axis] + 1
        total = 0
        if options.padding == schema.Padding.SAME:
            total = max((-(-size // stride[axis]) - 1) * stride[axis] + reach - size, 0)
        padding.append((total // 2, total - total // 2))
    padded = np.pad(x, [*padding, (0, 0)])
    rows = np.lib.stride_tricks.sliding_window_view(padded, (kernel[0] - 1) * dilation[0] + 1, 1)
    windows = np.lib.stride_tricks.sliding_window_view(rows, (kernel[1] - 1) * dilation[1] + 1, 2)
    seen = windows[:, :: stride[0], :: stride[1], :, :: dilation[0], :: dilation[1]]
    found: Floats = seen.transpose(0, 1, 2, 4, 5, 3).reshape(-1, kernel[0] * kernel[1] * x.shape[3])
    return found
