"""A picture as a model's input: decoded, turned to the right colors, fitted to its size, and scaled. Pure.

Compressed pictures need Pillow (extra `images`); pixels do not. After the resize a pixel is one of 256 values, so what
(pixel − mean) · scale and quantization make of it is looked up in a table.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np

from regatta_agent.processing.resample import Pixels, resize_bilinear, resize_nearest
from regatta_agent.serving.tensors import Array
from regatta_protocol.errors import Rejected, TooLarge
from regatta_protocol.processing import ImageInput
from regatta_protocol.values import TensorSpec
from regatta_runtimes.worker.session import quantize

__all__ = ["MAX_PIXELS", "PixelTable", "View", "as_picture", "decode_picture", "fit_picture"]

MAX_PIXELS = 64_000_000  # the largest sensors on these boards have 64 megapixels; 192 MB of memory


@dataclass(frozen=True)
class View:
    """Which part of a picture the model saw, in pixels of the picture; beyond its edges where bars were added."""

    left: float
    top: float
    width: float
    height: float
    picture_width: int
    picture_height: int

    def x(self, share: float) -> float:
        """Return the pixel of a place in shares of the model's width, held within the picture."""
        return min(max(self.left + share * self.width, 0.0), float(self.picture_width))

    def y(self, share: float) -> float:
        """Return the pixel of a place in shares of the model's height, held within the picture."""
        return min(max(self.top + share * self.height, 0.0), float(self.picture_height))


def decode_picture(data: bytes, channels: int) -> Pixels:
    """Return the pixels of a JPEG, PNG, BMP, … file, uint8 [h, w, channels], upright by its EXIF orientation.

    Raises:
        Rejected: when Pillow does not know it or is not installed here, or the picture is damaged.
        TooLarge: when it has over MAX_PIXELS pixels.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError as err:
        raise Rejected(
            "compressed pictures need Pillow on the device: pip install 'regatta-edge[images]', or send pixels as UINT8"
        ) from err
    try:
        with Image.open(io.BytesIO(data)) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise TooLarge(f"the picture has {picture.width} × {picture.height} pixels, over {MAX_PIXELS}")
            upright = ImageOps.exif_transpose(picture)
            pixels = np.asarray(upright.convert("L" if channels == 1 else "RGB"), dtype=np.uint8)
    except UnidentifiedImageError as err:
        raise Rejected("this is no picture that Pillow knows") from err
    except Image.DecompressionBombError as err:
        raise TooLarge(f"the picture is too large: {err}") from err
    except (OSError, ValueError, SyntaxError) as err:  # SyntaxError: what Pillow raises for a broken PNG
        raise Rejected(f"the picture is damaged: {err}") from err
    return pixels.reshape(*pixels.shape[:2], channels)


def as_picture(array: Array, channels: int) -> Pixels:
    """Return pixels as [h, w, channels]: gray is repeated, colors are weighed (ITU-R 601), an alpha channel dropped.

    Args:
        array: uint8 [h, w], [h, w, 1], [h, w, 3] or [h, w, 4], with or without a leading 1; RGB.
        channels: 1 or 3.

    Raises:
        Rejected: when it is no such array.
        TooLarge: when it has over MAX_PIXELS pixels.
    """
    shape = array.shape
    if array.ndim == 4 and shape[0] == 1:
        array = array[0]
    if array.ndim == 2:
        array = array[:, :, np.newaxis]
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        raise Rejected(f"a picture is UINT8 [height, width, 1, 3 or 4], and {array.dtype} {list(shape)} came")
    if array.shape[0] * array.shape[1] > MAX_PIXELS:
        raise TooLarge(f"the picture has {array.shape[1]} × {array.shape[0]} pixels, over {MAX_PIXELS}")
    colors = array[:, :, :3]
    if colors.shape[2] == channels:
        return colors
    if channels == 3:
        return np.repeat(colors, 3, axis=2)
    # Pillow's own integers for the weights 0.299, 0.587, 0.114
    gray = (colors.astype(np.uint32) @ np.array([19595, 38470, 7471], dtype=np.uint32) + 0x8000) >> 16
    return gray.astype(np.uint8)[:, :, np.newaxis]


def fit_picture(picture: Pixels, image: ImageInput) -> tuple[Pixels, View]:
    """Return the picture at the model's size, uint8 [height, width, channels], and what part of it that shows."""
    height, width = picture.shape[:2]
    kept_w, kept_h = _share(width, image.crop_share), _share(height, image.crop_share)
    if image.fit == "crop":
        aspect = image.width / image.height
        kept_w, kept_h = min(kept_w, _share(kept_h, aspect)), min(kept_h, _share(kept_w, 1 / aspect))
    left, top = (width - kept_w) // 2, (height - kept_h) // 2
    kept = picture[top : top + kept_h, left : left + kept_w]
    if image.fit != "letterbox":
        view = View(left, top, kept_w, kept_h, width, height)
        return _resized(kept, image.height, image.width, image), view
    ratio = min(image.width / kept_w, image.height / kept_h)
    inner_w = min(image.width, _share(kept_w, ratio))
    inner_h = min(image.height, _share(kept_h, ratio))
    at_x, at_y = (image.width - inner_w) // 2, (image.height - inner_h) // 2
    canvas = np.full((image.height, image.width, picture.shape[2]), image.fill, dtype=np.uint8)
    canvas[at_y : at_y + inner_h, at_x : at_x + inner_w] = _resized(kept, inner_h, inner_w, image)
    step_x, step_y = kept_w / inner_w, kept_h / inner_h
    view = View(left - at_x * step_x, top - at_y * step_y, image.width * step_x, image.height * step_y, width, height)
    return canvas, view


def _share(size: int, share: float) -> int:
    return max(1, round(size * share))


def _resized(picture: Pixels, height: int, width: int, image: ImageInput) -> Pixels:
    if picture.shape[:2] == (height, width):
        return picture
    if image.resize == "nearest":
        return resize_nearest(picture, height, width).astype(np.uint8, copy=False)
    return resize_bilinear(picture, height, width, antialias=image.antialias)


class PixelTable:
    """What each of the 256 pixel values becomes in the model's own dtype, for each channel."""

    def __init__(self, image: ImageInput, spec: TensorSpec) -> None:
        mean = np.array(image.channel_mean or (image.mean,) * image.channels)
        scale = np.array(image.channel_scale or (image.scale,) * image.channels)
        real = (np.arange(256.0)[np.newaxis] - mean[:, np.newaxis]) * scale[:, np.newaxis]
        self._image = image
        self._table = quantize(real, spec)  # [channels, 256]
        self._shape = tuple(max(1, size) for size in spec.shape) if -1 not in spec.shape[1:] else None
        pixels = np.arange(256, dtype=np.uint8)
        self._is_identity = self._table.dtype == np.uint8 and bool((self._table == pixels).all())
        self._is_even = bool((self._table == self._table[0]).all())

    def apply(self, picture: Pixels) -> Array:
        """Return the model's input for a fitted picture: of its dtype, with a leading 1."""
        if self._image.color == "bgr" and picture.shape[2] == 3:
            picture = picture[:, :, ::-1]
        if self._is_identity:
            values: Array = picture
        elif self._is_even:
            values = self._table[0][picture]
        else:
            values = np.stack([self._table[place][picture[:, :, place]] for place in range(picture.shape[2])], axis=2)
        if self._image.layout == "nchw":
            values = values.transpose(2, 0, 1)
        values = np.ascontiguousarray(values[np.newaxis])
        return values if self._shape is None else values.reshape(self._shape)
