"""How a picture becomes a model's input: a part of the signed manifest. Only data; see processing.py for the rest."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from regatta_protocol.wire import Wire

__all__ = ["ImageInput"]

_Triple = tuple[float, float, float]


class ImageInput(Wire):
    """How a picture becomes input 0: fitted to height × width, then (pixel − mean) · scale in real values."""

    kind: Literal["image"] = "image"
    height: int = Field(ge=1, le=8192)
    width: int = Field(ge=1, le=8192)
    channels: Literal[1, 3] = 3
    mean: float = 0.0  # of pixels 0…255
    scale: float = 1.0
    channel_mean: _Triple | None = None  # in place of mean, in the order of `color`
    channel_scale: _Triple | None = None  # in place of scale
    color: Literal["rgb", "bgr"] = "rgb"
    layout: Literal["nhwc", "nchw"] = "nhwc"
    resize: Literal["bilinear", "nearest"] = "bilinear"
    antialias: bool = True  # a shrinking bilinear resize averages all that it shrinks, as Pillow does; TensorFlow: no
    fit: Literal["stretch", "letterbox", "crop"] = "stretch"  # what happens to another aspect ratio
    crop_share: float = Field(default=1.0, gt=0, le=1)  # of the picture's middle, per side, kept before it is fitted
    fill: int = Field(default=0, ge=0, le=255)  # the pixels of a letterbox's bars

    @model_validator(mode="after")
    def _channels_agree(self) -> ImageInput:
        if self.channels == 1 and (self.channel_mean is not None or self.channel_scale is not None):
            raise ValueError("channel_mean and channel_scale are for pictures of 3 channels: use mean and scale")
        return self
