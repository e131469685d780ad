"""What a model's outputs mean, as a document for the application: classes, objects, a map, keypoints, an anomaly. Pure.

Outputs come in real values. Places are in pixels of the picture that was sent, so that a caller need not know to what
size the model looks at it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from regatta_agent.processing.boxes import decode_offsets, suppress
from regatta_agent.processing.picture import View
from regatta_agent.serving.tensors import Array
from regatta_protocol.errors import Rejected
from regatta_protocol.processing import (
    AnomalyResult,
    ClassificationResult,
    DetectionResult,
    PoseResult,
    Result,
    SegmentationResult,
)

__all__ = ["Outcome", "conclude"]

_Floats = npt.NDArray[np.float64]
_DIGITS = 6  # of scores and pixels in a document; int8 outputs have three


@dataclass(frozen=True)
class Outcome:
    """The document of an answer, and arrays that go beside it by name."""

    document: dict[str, Any]
    arrays: dict[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class _Context:
    """What else is needed to read outputs: the inputs in real values, the view of the picture, the labels."""

    inputs: Sequence[Array]
    view: View | None
    labels: Sequence[str]

    def label(self, index: int) -> str:
        return self.labels[index] if 0 <= index < len(self.labels) else str(index)

    def pixels(self) -> View:
        return self.view or View(0.0, 0.0, 1.0, 1.0, 1, 1)  # without a picture, places stay shares


def conclude(
    result: Result,
    outputs: Sequence[Sequence[Array]],
    inputs: Sequence[Array],
    view: View | None,
    labels: Sequence[str],
) -> Outcome:
    """Return what the outputs mean.

    Args:
        result: the description.
        outputs: of each sample, every output in the model's order, in real values.
        inputs: input 0 of each sample, in real values.
        view: what the model saw of the picture; None when it was no picture.
        labels: of the classes, may be empty.

    Raises:
        Rejected: when an output is not finite, or not of the described form.
    """
    for array in (array for sample in outputs for array in sample):
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise Rejected("an output holds NaN or infinity: the model cannot be read on this input")
    context = _Context(inputs, view, labels)
    reader: Callable[[Any, Sequence[Sequence[Array]], _Context], Outcome] = _READERS[type(result)]
    return reader(result, outputs, context)


def _classification(result: ClassificationResult, outputs: Sequence[Sequence[Array]], context: _Context) -> Outcome:
    """Return the greatest scores; of several samples (windows of a sound) their mean is read."""
    rows = np.stack([np.asarray(sample[result.output], dtype=np.float64).ravel() for sample in outputs])
    if result.softmax:
        rows = np.exp(rows - rows.max(axis=1, keepdims=True))
        rows /= rows.sum(axis=1, keepdims=True)
    scores = rows.mean(axis=0)
    best = [int(index) for index in np.argsort(-scores, kind="stable")[: result.top]]
    classes = [
        {"index": index, "score": _round(scores[index]), "label": context.label(index)}
        for index in best
        if scores[index] >= result.min_score
    ]
    return Outcome({"kind": result.kind, "classes": classes})


def _detection(result: DetectionResult, outputs: Sequence[Sequence[Array]], context: _Context) -> Outcome:
    arrays = outputs[0]
    boxes = np.asarray(arrays[result.boxes], dtype=np.float64).reshape(-1, 4)
    scores = np.asarray(arrays[result.scores], dtype=np.float64)
    if result.form == "suppressed":
        found = _suppressed_already(result, arrays, boxes, scores.ravel())
    else:
        found = _suppressed_here(result, boxes, scores.reshape(len(boxes), -1))
    view = context.pixels()
    objects = [
        {
            "index": index,
            "score": _round(score),
            "label": context.label(index),
            "box": {
                "left": _round(view.x(box[1])),
                "top": _round(view.y(box[0])),
                "right": _round(view.x(box[3])),
                "bottom": _round(view.y(box[2])),
            },
        }
        for score, index, box in sorted(found, key=lambda one: -one[0])[: result.top]
    ]
    return Outcome({"kind": result.kind, "objects": objects})


_Found = list[tuple[float, int, _Floats]]


def _suppressed_already(result: DetectionResult, arrays: Sequence[Array], boxes: _Floats, scores: _Floats) -> _Found:
    classes = np.asarray(arrays[result.classes]).ravel()
    count = len(boxes) if result.count < 0 else int(np.asarray(arrays[result.count]).ravel()[0])
    if not len(boxes) == len(scores) == len(classes):
        raise Rejected(f"{len(boxes)} boxes, {len(scores)} scores and {len(classes)} classes do not go together")
    return [
        (float(scores[place]), int(classes[place]), boxes[place])
        for place in range(max(0, min(count, len(boxes))))
        if scores[place] >= result.min_score
    ]


def _suppressed_here(result: DetectionResult, boxes: _Floats, scores: _Floats) -> _Found:
    if result.anchors is not None:
        boxes = decode_offsets(boxes, result.anchors)
    if result.score_activation == "sigmoid":
        scores = _sigmoid(scores)
    elif result.score_activation == "softmax":
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
    if result.background:
        scores = scores[:, 1:]
    found: _Found = []
    for index in range(scores.shape[1]):
        candidates = np.flatnonzero(scores[:, index] >= result.min_score)
        kept = suppress(boxes[candidates], scores[candidates, index], result.max_overlap, result.top)
        found += [(float(scores[candidates[place], index]), index, boxes[candidates[place]]) for place in kept]
    return found


def _segmentation(result: SegmentationResult, outputs: Sequence[Sequence[Array]], context: _Context) -> Outcome:
    """Return the class of each place of the model's map, cut to the picture, and each class's share of it."""
    scores = np.asarray(outputs[0][result.output])[0]
    mask = scores.argmax(axis=2) if scores.ndim == 3 else scores
    mask = mask.astype(np.uint8 if int(mask.max(initial=0)) < 256 else np.int32)
    if context.view is not None:
        mask = _within_picture(mask, context.view)
    counts = sorted(zip(*np.unique(mask, return_counts=True), strict=True), key=lambda pair: -int(pair[1]))
    classes = [
        {"index": int(index), "label": context.label(int(index)), "share": _round(count / mask.size)}
        for index, count in counts
    ]
    box = None
    if context.view is not None:
        view = context.view
        box = {
            "left": _round(view.x(0)), "top": _round(view.y(0)), "right": _round(view.x(1)), "bottom": _round(view.y(1))
        }  # fmt: skip
    return Outcome({"kind": result.kind, "classes": classes, "box": box}, {"mask": np.ascontiguousarray(mask)})


def _within_picture(mask: Array, view: View) -> Array:
    """Return the part of the map that shows the picture and not the bars beside it."""
    height, width = mask.shape
    left, top = max(0.0, -view.left) / view.width, max(0.0, -view.top) / view.height
    right = min(1.0, (view.picture_width - view.left) / view.width)
    bottom = min(1.0, (view.picture_height - view.top) / view.height)
    rows = slice(round(top * height), max(round(top * height) + 1, round(bottom * height)))
    columns = slice(round(left * width), max(round(left * width) + 1, round(right * width)))
    return mask[rows, columns]


def _pose(result: PoseResult, outputs: Sequence[Sequence[Array]], context: _Context) -> Outcome:
    array = np.asarray(outputs[0][result.output], dtype=np.float64)
    if result.form == "coordinates":
        found = array.reshape(-1, 3)
    else:
        offsets = None if result.offsets is None else np.asarray(outputs[0][result.offsets], dtype=np.float64)[0]
        found = _peaks(array[0], offsets, context.inputs[0].shape[1:3], sigmoid=result.sigmoid)
    view = context.pixels()
    keypoints = [
        {
            "name": result.keypoints[place] if place < len(result.keypoints) else str(place),
            "x": _round(view.x(x)),
            "y": _round(view.y(y)),
            "score": _round(score),
        }
        for place, (y, x, score) in enumerate(found)
        if score >= result.min_score
    ]
    return Outcome({"kind": result.kind, "keypoints": keypoints})


def _peaks(heatmaps: _Floats, offsets: _Floats | None, size: Sequence[int], *, sigmoid: bool) -> _Floats:
    """Return y, x (shares of the input) and score of each heatmap's peak, [keypoints, 3]."""
    rows, columns, count = heatmaps.shape
    flat = heatmaps.reshape(-1, count)
    places = flat.argmax(axis=0)
    row, column = np.divmod(places, columns)
    scores = flat[places, np.arange(count)]
    if offsets is None:
        y, x = (row + 0.5) / rows, (column + 0.5) / columns
    else:  # PoseNet's places are the corners of a grid that spans the input
        height, width = size
        each = np.arange(count)
        y = (row * (height - 1) / max(1, rows - 1) + offsets[row, column, each]) / height
        x = (column * (width - 1) / max(1, columns - 1) + offsets[row, column, each + count]) / width
    return np.stack([y, x, _sigmoid(scores) if sigmoid else scores], axis=1)


def _anomaly(result: AnomalyResult, outputs: Sequence[Sequence[Array]], context: _Context) -> Outcome:
    errors = [
        float(np.mean((np.asarray(sample[result.output], dtype=np.float64) - given) ** 2))
        for sample, given in zip(outputs, context.inputs, strict=True)
    ]
    score = float(np.mean(errors))
    document: dict[str, Any] = {"kind": result.kind, "score": _round(score), "samples": len(errors)}
    if result.threshold is not None:
        document |= {"threshold": result.threshold, "anomalous": score > result.threshold}
    return Outcome(document)


def _sigmoid(values: _Floats) -> _Floats:
    return 1.0 / (1.0 + np.exp(-np.clip(values, -60.0, 60.0)))


def _round(value: float) -> float:
    return round(float(value), _DIGITS)


_READERS: dict[type, Callable[[Any, Sequence[Sequence[Array]], _Context], Outcome]] = {
    ClassificationResult: _classification,
    DetectionResult: _detection,
    SegmentationResult: _segmentation,
    PoseResult: _pose,
    AnomalyResult: _anomaly,
}
