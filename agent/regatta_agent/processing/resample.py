"""Resizes a picture: bilinear, with or without antialiasing, or the nearest pixel. Pure.

Bilinear is a triangle filter. With antialiasing it spans all the pixels that one of the result covers, as Pillow's
`Resampling.BILINEAR`; without, always two, as TensorFlow's `tf.image.resize`. Pixel centers lie at halves in both.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["Pixels", "resize_bilinear", "resize_nearest"]

Pixels = npt.NDArray[np.uint8]
_Floats = npt.NDArray[np.float32]


def resize_bilinear(picture: Pixels, height: int, width: int, *, antialias: bool = True) -> Pixels:
    """Return the picture resized.

    Args:
        picture: uint8 [h, w, c].
        height: of the result.
        width: of the result.
        antialias: average all the pixels that one of the result covers.

    Returns:
        uint8 [height, width, c]; within 1 of Pillow's with antialiasing.
    """
    rows = _along_rows(picture, height, antialias) if picture.shape[0] != height else picture
    turned = np.ascontiguousarray(rows.transpose(1, 0, 2), dtype=np.float32)
    columns = _along_rows(turned, width, antialias) if picture.shape[1] != width else turned
    rounded = np.clip(np.rint(columns), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(rounded.transpose(1, 0, 2))


def resize_nearest(picture: npt.NDArray[np.generic], height: int, width: int) -> npt.NDArray[np.generic]:
    """Return the array resized along its first two axes, each element that of the nearest center."""
    rows = ((np.arange(height) + 0.5) * picture.shape[0] / height).astype(np.intp)
    columns = ((np.arange(width) + 0.5) * picture.shape[1] / width).astype(np.intp)
    return np.ascontiguousarray(picture[rows[:, None], columns[None, :]])


def _along_rows(values: npt.NDArray[np.generic], size: int, antialias: bool) -> _Floats:
    """Return [size, …] of [n, …]: each row of the result is a weighted sum of neighboring rows.

    Only the rows at hand are turned into floats: a picture of 12 megapixels would be 144 MB of them.
    """
    count = values.shape[0]
    flat = values.reshape(count, -1)
    result = np.empty((size, flat.shape[1]), dtype=np.float32)
    scale = count / size
    support = max(scale, 1.0) if antialias else 1.0
    for place in range(size):
        center = (place + 0.5) * scale
        first = max(0, int(center - support + 0.5))
        last = min(count, int(center + support + 0.5))
        distance = np.abs(np.arange(first, last) + 0.5 - center) / support
        weights = np.maximum(0.0, 1.0 - distance)
        result[place] = (weights / weights.sum()).astype(np.float32) @ flat[first:last].astype(np.float32)
    return result.reshape(size, *values.shape[1:])
