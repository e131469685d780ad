"""How a picture or a sound becomes a model's input, and what its outputs mean: parts of the signed manifest. Only data.

The device computes it (`regatta_agent.processing`), so that an application sends a picture and gets labels. Fields that
are left out have the values that most models of their kind were trained with; a value that fits no tensor of the model
is found by `regatta_protocol.fitting`. A manifest keeps them as plain JSON until they are asked for: the daemon never
needs these classes, and servers pass on what only a newer device understands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from regatta_protocol.bounds import Bounds
from regatta_protocol.plain import read, to_document

__all__ = [
    "AnomalyResult",
    "AudioInput",
    "ClassificationResult",
    "DetectionResult",
    "ImageInput",
    "PoseResult",
    "Processing",
    "Result",
    "SegmentationResult",
    "SsdAnchors",
    "as_json",
    "read_described",
]

_Index = Annotated[int, Bounds(ge=0, lt=64)]  # of an output, in the model's order
_Triple = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class ImageInput:
    """How a picture becomes input 0: fitted to height × width, then (pixel − mean) · scale in real values."""

    kind: Literal["image"] = "image"
    height: Annotated[int, Bounds(ge=1, le=8192)]
    width: Annotated[int, Bounds(ge=1, le=8192)]
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
    crop_share: Annotated[float, Bounds(gt=0, le=1)] = 1.0  # of the picture's middle, per side, kept before it is fit
    fill: Annotated[int, Bounds(ge=0, le=255)] = 0  # the pixels of a letterbox's bars

    def __post_init__(self) -> None:
        if self.channels == 1 and (self.channel_mean is not None or self.channel_scale is not None):
            raise ValueError("channel_mean and channel_scale are for pictures of 3 channels: use mean and scale")


@dataclass(frozen=True, kw_only=True)
class AudioInput:
    """How a sound becomes input 0: frames of mel features. The defaults are those of MLPerf Tiny's keyword spotting.

    A frame is Hann-windowed and transformed; `mel_bins` triangles weigh its spectrum; of that the logarithm is taken,
    and for MFCC the first `coefficients` of its cosine transform (tf.signal.mfccs_from_log_mel_spectrograms).
    """

    kind: Literal["audio"] = "audio"
    features: Literal["mfcc", "log_mel"] = "mfcc"
    sample_rate_hz: Annotated[int, Bounds(ge=4000, le=192_000)] = 16_000
    window_samples: Annotated[int, Bounds(ge=16, le=65_536)] = 480
    stride_samples: Annotated[int, Bounds(ge=1, le=65_536)] = 320
    fft_samples: Annotated[int, Bounds(ge=16, le=65_536)] = 512
    mel_bins: Annotated[int, Bounds(ge=1, le=1024)] = 40
    low_hz: Annotated[float, Bounds(ge=0)] = 20.0
    high_hz: Annotated[float, Bounds(gt=0)] = 4000.0
    mel_scale: Literal["htk", "slaney"] = "htk"  # slaney: librosa's default, with triangles of equal area
    power: Literal[1, 2] = 1  # of the spectrum's magnitude
    log: Literal["ln", "db"] = "ln"  # db: 10 · log10
    log_offset: Annotated[float, Bounds(gt=0)] = 1e-6
    coefficients: Annotated[int, Bounds(ge=1, le=1024)] = 10  # of MFCC
    normalize: Literal["none", "peak"] = "none"  # peak: the sound is divided by its greatest sample first
    center: bool = False  # frames are centered on their times, over zeros before and after the sound, as librosa's
    frames: Annotated[int, Bounds(ge=1, le=65_536)] = 49  # that make one sample of the model
    frame_step: Annotated[int, Bounds(ge=1)] | None = None  # frames between samples; None: one sample a sound
    mean: float = 0.0  # the input is (feature − mean) · scale, in real values
    scale: float = 1.0

    @property
    def features_per_frame(self) -> int:
        """How many numbers a frame becomes."""
        return self.coefficients if self.features == "mfcc" else self.mel_bins

    @property
    def clip_samples(self) -> int:
        """How many samples of sound the frames of one sample of the model take."""
        reach = (self.frames - 1) * self.stride_samples
        return max(1, reach) if self.center else reach + self.window_samples

    def __post_init__(self) -> None:
        if self.window_samples > self.fft_samples:
            raise ValueError(f"window_samples {self.window_samples} is over fft_samples {self.fft_samples}")
        if not self.low_hz < self.high_hz <= self.sample_rate_hz / 2:
            raise ValueError(f"low_hz < high_hz <= {self.sample_rate_hz / 2:g}, half of sample_rate_hz, must hold")
        if self.features == "mfcc" and self.coefficients > self.mel_bins:
            raise ValueError(f"coefficients {self.coefficients} is over mel_bins {self.mel_bins}")


@dataclass(frozen=True, kw_only=True)
class ClassificationResult:
    """An output is a row of scores, one a class."""

    kind: Literal["classification"] = "classification"
    output: _Index = 0
    softmax: bool = False  # the output is logits
    top: Annotated[int, Bounds(ge=1, le=1000)] = 5
    min_score: float = 0.0


@dataclass(frozen=True, kw_only=True)
class SsdAnchors:
    """The default boxes of an SSD (Liu et al. 2016, section 2.2), as TensorFlow's ssd_anchor_generator makes them."""

    grids: Annotated[tuple[tuple[int, int], ...], Bounds(min_length=1, max_length=16)]  # rows, columns of each map
    min_scale: Annotated[float, Bounds(gt=0, le=1)] = 0.2
    max_scale: Annotated[float, Bounds(gt=0, le=1)] = 0.95
    aspect_ratios: Annotated[tuple[float, ...], Bounds(min_length=1, max_length=16)] = (1.0, 2.0, 0.5, 3.0, 1.0 / 3.0)
    reduce_lowest: bool = True  # the first feature map has three boxes a place
    box_scales: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)  # of y, x, height, width

    @property
    def count(self) -> int:
        """How many boxes there are."""
        each = len(self.aspect_ratios) + 1
        first = 3 if self.reduce_lowest else each
        return sum(rows * columns * (each if place else first) for place, (rows, columns) in enumerate(self.grids))


@dataclass(frozen=True, kw_only=True)
class DetectionResult:
    """Boxes [n, 4] (top, left, bottom, right in shares of the input) with scores.

    - suppressed: scores [n] and classes [n] of boxes that the model has suppressed itself (the operator
      TFLite_Detection_PostProcess, in whose order the outputs are by default);
    - boxes: scores [n, classes]; non-maximum suppression is done here;
    - ssd: likewise, and the boxes are offsets to `anchors`.
    """

    kind: Literal["detection"] = "detection"
    form: Literal["suppressed", "boxes", "ssd"] = "suppressed"
    boxes: _Index = 0
    classes: _Index = 1  # of the form suppressed only
    scores: _Index = 2
    count: Annotated[int, Bounds(ge=-1, lt=64)] = 3  # of the form suppressed only; -1: all boxes count
    anchors: SsdAnchors | None = None  # of the form ssd
    score_activation: Literal["none", "sigmoid", "softmax"] = "none"
    background: bool = False  # class 0 of the scores is no object; class 1 then is label 0
    min_score: Annotated[float, Bounds(ge=0, le=1)] = 0.5
    max_overlap: Annotated[float, Bounds(ge=0, le=1)] = 0.6  # intersection over union, of boxes of one class
    top: Annotated[int, Bounds(ge=1, le=1000)] = 100

    def __post_init__(self) -> None:
        if (self.anchors is not None) != (self.form == "ssd"):
            raise ValueError(f"form {self.form} and anchors: {'give' if self.form == 'ssd' else 'leave out'} anchors")


@dataclass(frozen=True, kw_only=True)
class SegmentationResult:
    """An output is a map [height, width, classes] of scores, or [height, width] of classes."""

    kind: Literal["segmentation"] = "segmentation"
    output: _Index = 0


@dataclass(frozen=True, kw_only=True)
class PoseResult:
    """Keypoints: heatmaps [rows, columns, keypoints] with their peaks, or [keypoints, 3] of y, x, score in shares.

    With `offsets`, an output [rows, columns, 2 · keypoints] of pixels (all y, then all x), a peak is at its place
    times the stride plus its offset (PoseNet; Papandreou et al. 2018), else in the middle of its place.
    """

    kind: Literal["pose"] = "pose"
    form: Literal["heatmap", "coordinates"] = "heatmap"
    output: _Index = 0
    offsets: _Index | None = None
    sigmoid: bool = False  # the heatmaps are logits
    keypoints: Annotated[tuple[str, ...], Bounds(max_length=1000)] = ()  # their names
    min_score: float = 0.0


@dataclass(frozen=True, kw_only=True)
class AnomalyResult:
    """An output is a reconstruction of input 0, and its mean squared error is the score, averaged over the samples."""

    kind: Literal["anomaly"] = "anomaly"
    output: _Index = 0
    threshold: Annotated[float, Bounds(ge=0)] | None = None  # a greater score is an anomaly; None: none is


Result = ClassificationResult | DetectionResult | SegmentationResult | PoseResult | AnomalyResult


@dataclass(frozen=True, kw_only=True)
class Processing:
    """What a user's processing file says (`regatta model push --processing FILE`)."""

    image: ImageInput | None = None
    audio: AudioInput | None = None
    result: Result | None = None

    def __post_init__(self) -> None:
        if self.image is not None and self.audio is not None:
            raise ValueError("give image or audio, not both: a model's input 0 is one of them")


def as_json(part: ImageInput | AudioInput | Result | None) -> dict[str, Any] | None:
    """Return a part of a description as a manifest holds it."""
    return None if part is None else to_document(part)


def read_described(manifest: Mapping[str, object], refusal: str) -> Processing:
    """Return the processing that the JSON of a manifest describes.

    Args:
        manifest: the document.
        refusal: what the text of a refusal begins with.

    Raises:
        Rejected: when it is not understood: it may be of a newer fleet.
    """
    image = manifest.get("input") if manifest.get("audio") is None else None
    described = {"image": image, "audio": manifest.get("audio"), "result": manifest.get("result")}
    return read(Processing, described, refusal)
