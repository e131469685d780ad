"""Whether a description of processing fits a model's tensors: checked where a model is pushed and where it is served.

Pure. A size of -1 fits anything; the leading 1 of a batch is left out of what is compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from regatta_protocol.errors import Rejected
from regatta_protocol.processing import (
    AnomalyResult,
    AudioInput,
    ClassificationResult,
    DetectionResult,
    ImageInput,
    PoseResult,
    Processing,
    SegmentationResult,
)
from regatta_protocol.values import TensorSpec

__all__ = ["check_processing"]


def check_processing(processing: Processing, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    """Do nothing when the description fits the model.

    Raises:
        Rejected: naming the field, what it says and what the model has.
    """
    if processing.image is not None:
        _check_image(processing.image, _only(inputs, "image"))
    if processing.audio is not None:
        _check_audio(processing.audio, _only(inputs, "audio"))
    result = processing.result
    if isinstance(result, ClassificationResult):
        spec = _at(outputs, result.output, "result.output")
        if any(size not in (1, -1) for size in spec.shape[:-1]) or not spec.shape:
            raise Rejected(f"result.output: {_words(spec)} is no row of scores")
    elif isinstance(result, DetectionResult):
        _check_detection(result, outputs)
    elif isinstance(result, SegmentationResult):
        spec = _at(outputs, result.output, "result.output")
        if len(spec.shape) not in (3, 4):
            raise Rejected(
                f"result.output: {_words(spec)} is no map: [1, height, width] or [1, height, width, classes]"
            )
    elif isinstance(result, PoseResult):
        _check_pose(result, outputs)
    elif isinstance(result, AnomalyResult):
        spec = _at(outputs, result.output, "result.output")
        if not _same(spec.shape, inputs[0].shape):
            raise Rejected(f"result.output: {_words(spec)} is no reconstruction of {_words(inputs[0])}")


def _only(inputs: Sequence[TensorSpec], name: str) -> TensorSpec:
    if len(inputs) != 1:
        raise Rejected(f"{name}: the model has {len(inputs)} inputs, and only models with one can be sent one")
    return inputs[0]


def _at(outputs: Sequence[TensorSpec], index: int, field: str) -> TensorSpec:
    if index >= len(outputs):
        raise Rejected(f"{field} is {index}, and the model has {len(outputs)} outputs, numbered from 0")
    return outputs[index]


def _words(spec: TensorSpec) -> str:
    return f"{spec.name!r} {list(spec.shape)}"


def _same(shape: Sequence[int], wanted: Sequence[int]) -> bool:
    return len(shape) == len(wanted) and all(
        size == other or -1 in (size, other) for size, other in zip(shape, wanted, strict=True)
    )


def _check_image(image: ImageInput, spec: TensorSpec) -> None:
    plane = (image.height, image.width)
    wanted = (1, *plane, image.channels) if image.layout == "nhwc" else (1, image.channels, *plane)
    if not _same(spec.shape, wanted):
        raise Rejected(f"image: {list(wanted)} ({image.layout}) is not the shape of input {_words(spec)}")


def _check_audio(audio: AudioInput, spec: TensorSpec) -> None:
    size = math.prod(size for size in spec.shape if size > 0)
    wanted = audio.frames * audio.features_per_frame
    if size != wanted and -1 not in spec.shape[1:]:
        raise Rejected(
            f"audio: {audio.frames} frames of {audio.features_per_frame} features are {wanted} numbers, and input "
            f"{_words(spec)} takes {size}"
        )


def _check_detection(result: DetectionResult, outputs: Sequence[TensorSpec]) -> None:
    boxes, scores = _at(outputs, result.boxes, "result.boxes"), _at(outputs, result.scores, "result.scores")
    if len(boxes.shape) not in (0, 3) or (boxes.shape and boxes.shape[-1] not in (4, -1)):
        raise Rejected(f"result.boxes: {_words(boxes)} is not [1, n, 4]")
    if result.form == "suppressed":
        _at(outputs, result.classes, "result.classes")
        if len(scores.shape) not in (0, 2):
            raise Rejected(f"result.scores: {_words(scores)} is not [1, n], as the form suppressed has it")
        if result.count >= 0:
            _at(outputs, result.count, "result.count")
    elif len(scores.shape) != 3:
        raise Rejected(f"result.scores: {_words(scores)} is not [1, n, classes]")
    if result.anchors is not None and boxes.shape[1] not in (result.anchors.count, -1):
        raise Rejected(f"result.anchors are {result.anchors.count} and {_words(boxes)} has another number of boxes")


def _check_pose(result: PoseResult, outputs: Sequence[TensorSpec]) -> None:
    spec = _at(outputs, result.output, "result.output")
    names = len(result.keypoints)
    if result.form == "coordinates":
        if spec.shape[-1] not in (3, -1):
            raise Rejected(f"result.output: {_words(spec)} is not [1, …, keypoints, 3]")
        found = spec.shape[-2] if len(spec.shape) > 1 else -1
    else:
        if len(spec.shape) != 4:
            raise Rejected(f"result.output: {_words(spec)} is not [1, rows, columns, keypoints]")
        found = spec.shape[-1]
    if names and found not in (names, -1):
        raise Rejected(f"result.keypoints names {names}, and {_words(spec)} has {found}")
    if result.offsets is not None:
        offsets = _at(outputs, result.offsets, "result.offsets")
        wanted = (*spec.shape[:-1], 2 * spec.shape[-1])
        if not _same(offsets.shape, wanted):
            raise Rejected(f"result.offsets: {_words(offsets)} is not {list(wanted)}")
