"""What a user gives beside a model's file, checked against the model and completed by what can be guessed."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from regatta_fleet.models.labels import parse_labels
from regatta_fleet.models.overlay import OverlaySource
from regatta_protocol.durable import read_bounded
from regatta_protocol.errors import Rejected
from regatta_protocol.fitting import check_processing
from regatta_protocol.manifest import Policy
from regatta_protocol.processing import ImageInput, Processing
from regatta_protocol.values import TensorSpec
from regatta_runtimes.worker.inspect import ModelFacts

__all__ = ["BundleSource", "check_given", "golden_count", "guess_image", "input_image", "read_labels"]

logger = logging.getLogger(__name__)

_MAX_LABELS_BYTES = 8 * 1024 * 1024
_GOLDEN_SAMPLES = 16
_GOLDEN_BYTES = 2 * 1024 * 1024  # 3 pictures of 224 × 224 × 3 in float32: half of MobileNetV2's own 3.6 MB


@dataclass(frozen=True)
class BundleSource:
    """What a user gives beside a bare model file."""

    labels: Path | None = None
    evaluation: Path | None = None  # .npz with x, y and optionally scale, zero_point
    mean: float | None = None  # of pixels; with `scale` the input is a picture: real = (pixel − mean) · scale
    scale: float | None = None
    variants: tuple[Path, ...] = ()  # further files that compute the same model, for example an Edge TPU one
    policy: Policy = field(default_factory=Policy)
    overlay: OverlaySource | None = None
    processing: Processing | None = None  # what its input is made of and what its outputs mean


def golden_count(inputs: Sequence[TensorSpec]) -> int:
    """Return how many golden samples to keep: 16, fewer for large inputs, since every device downloads them."""
    sample_bytes = sum(4 * math.prod(max(size, 1) for size in spec.shape) for spec in inputs)
    return max(2, min(_GOLDEN_SAMPLES, _GOLDEN_BYTES // max(sample_bytes, 1)))


def check_given(processing: Processing, facts: ModelFacts, name: str) -> None:
    """Do nothing when the description of processing fits the variant.

    Raises:
        Rejected: otherwise; the text names the variant and the field.
    """
    try:
        check_processing(processing, facts.inputs, facts.outputs)
    except Rejected as err:
        raise Rejected(f"the processing of variant {name}: {err}") from err


def input_image(source: BundleSource, facts: ModelFacts) -> ImageInput | None:
    """Return how a picture becomes the model's input: as described, else guessed unless a sound is described."""
    described = source.processing or Processing()
    if described.image is not None or described.audio is not None:
        return described.image
    return guess_image(facts, mean=source.mean, scale=source.scale)


def guess_image(facts: ModelFacts, *, mean: float | None = None, scale: float | None = None) -> ImageInput | None:
    """Return how a picture becomes the model's input, or None when it does not look like taking one.

    Pictures are [1, h, w, 3], and [1, h, w, 1] when square (a spectrogram seldom is). For a quantized input the
    pixels 0..255 become its whole range, so a pixel is its own quantized value (int8: less 128). For a float input
    without `mean` and `scale`, pixels become 0..1.
    """
    if len(facts.inputs) != 1:
        return None
    spec = facts.inputs[0]
    if len(spec.shape) != 4 or spec.shape[1] < 1 or spec.shape[2] < 1 or spec.shape[3] not in (1, 3):
        return None
    asked = mean is not None or scale is not None
    if spec.shape[3] == 1 and spec.shape[1] != spec.shape[2] and not asked:
        return None
    default_mean, default_scale = 0.0, 1.0 / 255.0
    if spec.dtype in ("uint8", "int8") and spec.scale:
        default_mean = float((spec.zero_point or 0) + (128 if spec.dtype == "int8" else 0))
        default_scale = spec.scale
    return ImageInput(
        height=spec.shape[1],
        width=spec.shape[2],
        channels=3 if spec.shape[3] == 3 else 1,
        mean=default_mean if mean is None else mean,
        scale=default_scale if scale is None else scale,
    )


def read_labels(path: Path, classes: int) -> tuple[str, ...]:
    """Return the labels in the file, checked against the number of classes (0: unknown).

    Raises:
        Rejected: when there are more than one too many or too few.
    """
    labels = parse_labels(read_bounded(path, _MAX_LABELS_BYTES), path.name)
    if classes > 0 and abs(len(labels) - classes) > 1:
        raise Rejected(
            f"{path.name} has {len(labels)} labels, the model answers {classes} classes: give the right file"
        )
    if classes > 0 and len(labels) != classes:
        logger.warning("labels=%s count=%d classes=%d: one apart, is there a background?", path, len(labels), classes)
    return labels
