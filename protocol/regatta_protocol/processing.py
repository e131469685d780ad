"""How a picture or a sound becomes a model's input, and what its outputs mean: parts of the signed manifest. Only data.

The device computes it (`regatta_agent.processing`), so that an application sends a picture and gets labels. Fields that
are left out have the values that most models of their kind were trained with; a value that fits no tensor of the model
is found by `regatta_protocol.fitting`. A manifest keeps sounds and results as plain JSON until they are asked for: the
daemon never needs these classes, which take 0.4 MB.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from regatta_protocol.picture import ImageInput
from regatta_protocol.wire import Wire

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
]

_Index = Annotated[int, Field(ge=0, lt=64)]  # of an output, in the model's order


class AudioInput(Wire):
    """How a sound becomes input 0: frames of mel features. The defaults are those of MLPerf Tiny's keyword spotting.

    A frame is Hann-windowed and transformed; `mel_bins` triangles weigh its spectrum; of that the logarithm is taken,
    and for MFCC the first `coefficients` of its cosine transform (tf.signal.mfccs_from_log_mel_spectrograms).
    """

    kind: Literal["audio"] = "audio"
    features: Literal["mfcc", "log_mel"] = "mfcc"
    sample_rate_hz: int = Field(default=16_000, ge=4000, le=192_000)
    window_samples: int = Field(default=480, ge=16, le=65_536)
    stride_samples: int = Field(default=320, ge=1, le=65_536)
    fft_samples: int = Field(default=512, ge=16, le=65_536)
    mel_bins: int = Field(default=40, ge=1, le=1024)
    low_hz: float = Field(default=20.0, ge=0)
    high_hz: float = Field(default=4000.0, gt=0)
    mel_scale: Literal["htk", "slaney"] = "htk"  # slaney: librosa's default, with triangles of equal area
    power: Literal[1, 2] = 1  # of the spectrum's magnitude
    log: Literal["ln", "db"] = "ln"  # db: 10 · log10
    log_offset: float = Field(default=1e-6, gt=0)
    coefficients: int = Field(default=10, ge=1, le=1024)  # of MFCC
    normalize: Literal["none", "peak"] = "none"  # peak: the sound is divided by its greatest sample first
    center: bool = False  # frames are centered on their times, over zeros before and after the sound, as librosa's
    frames: int = Field(default=49, ge=1, le=65_536)  # that make one sample of the model
    frame_step: int | None = Field(default=None, ge=1)  # frames from one sample to the next; None: one sample a sound
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

    @model_validator(mode="after")
    def _fits_itself(self) -> AudioInput:
        if self.window_samples > self.fft_samples:
            raise ValueError(f"window_samples {self.window_samples} is over fft_samples {self.fft_samples}")
        if not self.low_hz < self.high_hz <= self.sample_rate_hz / 2:
            raise ValueError(f"low_hz < high_hz <= {self.sample_rate_hz / 2:g}, half of sample_rate_hz, must hold")
        if self.features == "mfcc" and self.coefficients > self.mel_bins:
            raise ValueError(f"coefficients {self.coefficients} is over mel_bins {self.mel_bins}")
        return self


class ClassificationResult(Wire):
    """An output is a row of scores, one a class."""

    kind: Literal["classification"] = "classification"
    output: _Index = 0
    softmax: bool = False  # the output is logits
    top: int = Field(default=5, ge=1, le=1000)
    min_score: float = 0.0


class SsdAnchors(Wire):
    """The default boxes of an SSD (Liu et al. 2016, section 2.2), as TensorFlow's ssd_anchor_generator makes them."""

    grids: tuple[tuple[int, int], ...] = Field(min_length=1, max_length=16)  # rows and columns of each feature map
    min_scale: float = Field(default=0.2, gt=0, le=1)
    max_scale: float = Field(default=0.95, gt=0, le=1)
    aspect_ratios: tuple[float, ...] = Field(default=(1.0, 2.0, 0.5, 3.0, 1.0 / 3.0), min_length=1, max_length=16)
    reduce_lowest: bool = True  # the first feature map has three boxes a place
    box_scales: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)  # of y, x, height, width

    @property
    def count(self) -> int:
        """How many boxes there are."""
        each = len(self.aspect_ratios) + 1
        first = 3 if self.reduce_lowest else each
        return sum(rows * columns * (each if place else first) for place, (rows, columns) in enumerate(self.grids))


class DetectionResult(Wire):
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
    count: int = Field(default=3, ge=-1, lt=64)  # of the form suppressed only; -1: all boxes count
    anchors: SsdAnchors | None = None  # of the form ssd
    score_activation: Literal["none", "sigmoid", "softmax"] = "none"
    background: bool = False  # class 0 of the scores is no object; class 1 then is label 0
    min_score: float = Field(default=0.5, ge=0, le=1)
    max_overlap: float = Field(default=0.6, ge=0, le=1)  # intersection over union, of boxes of one class
    top: int = Field(default=100, ge=1, le=1000)

    @model_validator(mode="after")
    def _anchors_are_for_ssd(self) -> DetectionResult:
        if (self.anchors is not None) != (self.form == "ssd"):
            raise ValueError(f"form {self.form} and anchors: {'give' if self.form == 'ssd' else 'leave out'} anchors")
        return self


class SegmentationResult(Wire):
    """An output is a map [height, width, classes] of scores, or [height, width] of classes."""

    kind: Literal["segmentation"] = "segmentation"
    output: _Index = 0


class PoseResult(Wire):
    """Keypoints: heatmaps [rows, columns, keypoints] with their peaks, or [keypoints, 3] of y, x, score in shares.

    With `offsets`, an output [rows, columns, 2 · keypoints] of pixels (all y, then all x), a peak is at its place
    times the stride plus its offset (PoseNet; Papandreou et al. 2018), else in the middle of its place.
    """

    kind: Literal["pose"] = "pose"
    form: Literal["heatmap", "coordinates"] = "heatmap"
    output: _Index = 0
    offsets: _Index | None = None
    sigmoid: bool = False  # the heatmaps are logits
    keypoints: tuple[str, ...] = Field(default=(), max_length=1000)  # their names
    min_score: float = 0.0


class AnomalyResult(Wire):
    """An output is a reconstruction of input 0, and its mean squared error is the score, averaged over the samples."""

    kind: Literal["anomaly"] = "anomaly"
    output: _Index = 0
    threshold: float | None = Field(default=None, ge=0)  # a greater score is an anomaly; None: only the score is told


Result = Annotated[
    ClassificationResult | DetectionResult | SegmentationResult | PoseResult | AnomalyResult,
    Field(discriminator="kind"),
]


class Processing(Wire):
    """What a user's processing file says (`regatta model push --processing FILE`)."""

    image: ImageInput | None = None
    audio: AudioInput | None = None
    result: Result | None = None

    @model_validator(mode="after")
    def _one_input(self) -> Processing:
        if self.image is not None and self.audio is not None:
            raise ValueError("give image or audio, not both: a model's input 0 is one of them")
        return self
