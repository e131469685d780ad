"""Files to input arrays, on the client's side: pictures, .npy and CSV, each read within limits.

Pictures need Pillow (extra `images`). They are resized to the model's height × width and become
(pixel − mean) · scale, float32, in the real values that the model's metadata describes (`ImageInput` of the manifest).
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regatta_agent.serving.tensors import Array
from regatta_protocol.errors import Misuse, Rejected, TooLarge

__all__ = ["MAX_FILE_BYTES", "InputShape", "input_shape", "read_samples"]

MAX_FILE_BYTES = 256 * 1024 * 1024
_NPY_MAGIC = b"\x93NUMPY"


@dataclass(frozen=True)
class InputShape:
    """What input 0 takes: its shape without the leading 1, and how a picture becomes it (None: it is no picture)."""

    sample_shape: tuple[int, ...]
    image: Mapping[str, Any] | None

    @property
    def size(self) -> int:
        """The number of elements of one sample."""
        return math.prod(self.sample_shape)


def input_shape(metadata: Mapping[str, Any]) -> InputShape:
    """Return what the model's one input takes, from its metadata.

    Raises:
        Rejected: when the model has several inputs, or one of changeable size.
    """
    inputs: Sequence[Mapping[str, Any]] = metadata["inputs"]
    if len(inputs) != 1:
        raise Rejected(f"{metadata['name']} has {len(inputs)} inputs: use regatta_agent.client for such models")
    shape = tuple(int(size) for size in inputs[0]["shape"])
    sample = shape[1:] if len(shape) > 1 and shape[0] in (1, -1) else shape
    if any(size < 1 for size in sample):
        raise Rejected(f"{metadata['name']} takes {list(shape)}, of changeable size: use regatta_agent.client")
    return InputShape(sample, metadata.get("parameters", {}).get("input"))


def read_samples(data: bytes, name: str, wanted: InputShape) -> Array:
    """Return the samples in a file, [n, *sample_shape]; floats are real values, integers native.

    Args:
        data: the whole file.
        name: its name, for messages; the content decides what it is.
        wanted: what the model takes.

    Raises:
        Rejected: when it is neither a picture, .npy nor CSV, is damaged, or has another shape.
        TooLarge: when it is over MAX_FILE_BYTES, or a picture of too many pixels.
        Misuse: when it is a picture and Pillow is not installed.
    """
    if len(data) > MAX_FILE_BYTES:
        raise TooLarge(f"{name} is over the limit of {MAX_FILE_BYTES} bytes")
    if data.startswith(_NPY_MAGIC):
        return _shaped(_read_npy(data, name), name, wanted)
    table = _read_csv(data, name)
    if table is not None:
        return _shaped(table, name, wanted)
    return _read_picture(data, name, wanted)


def _shaped(array: Array, name: str, wanted: InputShape) -> Array:
    """Return the array as [n, *sample_shape]."""
    shape = wanted.sample_shape
    if array.shape in (shape, (wanted.size,)):
        return array.reshape((1, *shape))
    if array.ndim >= 2 and array.shape[0] > 0 and array.shape[1:] in (shape, (wanted.size,), (1, *shape)):
        return array.reshape((array.shape[0], *shape))
    if array.size == wanted.size:  # a picture's rows, for example 8 lines of 8 numbers
        return array.reshape((1, *shape))
    raise Rejected(f"{name} has shape {list(array.shape)} and a sample of this model {list(shape)}")


def _read_npy(data: bytes, name: str) -> Array:
    try:
        array: Array = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as err:
        raise Rejected(f"{name} is no readable .npy file of plain numbers: {err}") from err
    if array.dtype.kind not in "fiub":
        raise Rejected(f"{name} holds {array.dtype} and not numbers")
    return array


def _read_csv(data: bytes, name: str) -> Array | None:
    """Return the table of numbers, float32 [rows, columns], or None when the file is no text of numbers."""
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError:
        return None
    try:
        rows = [[float(cell) for cell in line.replace(",", " ").split()] for line in text.splitlines() if line.strip()]
    except ValueError:
        return None
    if not rows:
        raise Rejected(f"{name} is empty")
    if len({len(row) for row in rows}) != 1:
        raise Rejected(f"{name} has rows of different lengths")
    return np.asarray(rows, dtype=np.float32)


def _read_picture(data: bytes, name: str, wanted: InputShape) -> Array:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as err:
        raise Misuse(
            f"{name} is neither .npy nor CSV, and to read pictures Pillow is needed: pip install 'regatta-edge[images]'"
        ) from err
    image = wanted.image
    if image is None:
        raise Rejected(
            f"{name} is no table of numbers, and this model takes no picture but {list(wanted.sample_shape)}"
        )
    height, width, channels = int(image["height"]), int(image["width"]), int(image["channels"])
    try:
        with Image.open(io.BytesIO(data)) as picture:
            pixels = picture.convert("L" if channels == 1 else "RGB").resize((width, height), Image.Resampling.BILINEAR)
            array = np.asarray(pixels, dtype=np.float32)
    except UnidentifiedImageError as err:
        raise Rejected(f"{name} is neither a picture that Pillow knows, nor .npy, nor CSV") from err
    except Image.DecompressionBombError as err:
        raise TooLarge(f"{name}: {err}") from err
    except (OSError, ValueError, SyntaxError) as err:  # SyntaxError: what Pillow raises for a broken PNG
        raise Rejected(f"{name} is a damaged picture: {err}") from err
    real = (array - float(image["mean"])) * float(image["scale"])
    return _shaped(real.reshape(1, height, width, channels).astype(np.float32), name, wanted)
