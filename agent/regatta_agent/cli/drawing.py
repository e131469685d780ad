"""Draws an answer on the picture that it is about: boxes, keypoints, a mask, or the best class. Needs Pillow."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from regatta_agent.asking import Reply
from regatta_agent.serving.tensors import Array
from regatta_protocol.errors import Misuse, Rejected

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

__all__ = ["Plot", "draw"]

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
# Okabe and Ito's colors, which people with any color vision tell apart
_COLORS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
_MASK_OPACITY = 0.5


class Plot:
    """Where drawings go: one file, or a folder with one a sample."""

    def __init__(self, path: Path) -> None:
        """Keep the place.

        Raises:
            Misuse: when Pillow is not installed.
        """
        try:
            import PIL.Image as _  # noqa: F401 - asked for now, before anything is inferred
        except ImportError as err:
            raise Misuse("--plot needs Pillow: pip install 'regatta-edge[images]'") from err
        self._path = path
        self._one = path.suffix.lower() in _SUFFIXES
        self._drawn = 0

    def save(self, key: str, item: bytes | Array, reply: Reply) -> Path:
        """Draw the reply, and return where.

        Raises:
            Rejected: when the sample is no picture, a second one is to go into one file, or it cannot be written.
        """
        if self._one and self._drawn:
            raise Rejected(f"--plot {self._path} is one file and there are more samples: give a folder")
        self._drawn += 1
        path = self._path if self._one else self._path / f"{self._drawn:05}-{Path(key).stem or 'sample'}.png"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            draw(item, reply, key).save(path)
        except OSError as err:
            raise Rejected(f"{path} cannot be written: {err}") from err
        return path


def draw(item: bytes | Array, reply: Reply, key: str) -> Image.Image:
    """Return the picture with the reply drawn on it.

    Raises:
        Rejected: when the sample is no picture.
    """
    from PIL import ImageDraw

    picture = _picture(item, key)
    if reply.mask is not None:
        picture = _masked(picture, reply)
    pen = ImageDraw.Draw(picture)
    width = max(1, round(min(picture.size) / 200))
    for place, one in enumerate(reply.document.get("objects", ())):
        color, box = _COLORS[one["index"] % len(_COLORS)], one["box"]
        pen.rectangle((box["left"], box["top"], box["right"], box["bottom"]), outline=color, width=width)
        _write(pen, (box["left"], box["top"]), f"{one['label']} {one['score']:.2f}", _COLORS[place % len(_COLORS)])
    for place, one in enumerate(reply.document.get("keypoints", ())):
        x, y, radius = one["x"], one["y"], 2 * width
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_COLORS[place % len(_COLORS)])
    if reply.document["kind"] == "classification" and reply.document["classes"]:
        best = reply.document["classes"][0]
        _write(pen, (0, 0), f"{best['label']} {best['score']:.2f}", _COLORS[0])
    return picture


def _picture(item: bytes | Array, key: str) -> Image.Image:
    from PIL import Image, ImageOps, UnidentifiedImageError

    if isinstance(item, np.ndarray):
        if item.dtype != np.uint8 or item.ndim not in (2, 3):
            raise Rejected(f"{key} is no picture to draw on: it is {item.dtype} {list(item.shape)}")
        return Image.fromarray(item.squeeze(2) if item.ndim == 3 and item.shape[2] == 1 else item).convert("RGB")
    try:
        return ImageOps.exif_transpose(Image.open(io.BytesIO(item))).convert("RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError) as err:
        raise Rejected(f"{key} is no picture to draw on") from err


def _masked(picture: Image.Image, reply: Reply) -> Image.Image:
    """Return the picture under the colors of its mask; class 0 is left clear, as the background mostly is."""
    from PIL import Image

    assert reply.mask is not None
    box: dict[str, Any] | None = reply.document.get("box")
    area = (0, 0, *picture.size) if box is None else tuple(round(box[k]) for k in ("left", "top", "right", "bottom"))
    palette = np.array([_COLORS[index % len(_COLORS)] for index in range(256)], dtype=np.uint8)
    small = reply.mask.astype(np.uint8)
    colors = Image.fromarray(palette[small])
    alpha = Image.fromarray(np.where(small > 0, np.uint8(255 * _MASK_OPACITY), np.uint8(0)))
    size = (max(1, area[2] - area[0]), max(1, area[3] - area[1]))
    nearest = Image.Resampling.NEAREST
    picture.paste(colors.resize(size, nearest), area[:2], alpha.resize(size, nearest))
    return picture


def _write(pen: ImageDraw.ImageDraw, place: tuple[float, float], text: str, color: tuple[int, int, int]) -> None:
    left, top, right, bottom = pen.textbbox(place, text)
    pen.rectangle((left, top, right + 2, bottom + 2), fill=color)
    pen.text((place[0] + 1, place[1] + 1), text, fill=(0, 0, 0))
