"""Outputs become documents: classes, objects, maps, keypoints and anomalies, in pixels of the picture that was sent."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from regatta_agent.processing.boxes import decode_offsets, default_boxes, suppress
from regatta_agent.processing.picture import View
from regatta_agent.processing.results import Outcome, conclude
from regatta_protocol.errors import Rejected
from regatta_protocol.processing import (
    AnomalyResult,
    ClassificationResult,
    DetectionResult,
    PoseResult,
    Result,
    SegmentationResult,
    SsdAnchors,
)

_VIEW = View(0, 0, 200, 100, 200, 100)
_ANCHORS = SsdAnchors(grids=((19, 19), (10, 10), (5, 5), (3, 3), (2, 2), (1, 1)))


def _read(result: Result, *outputs: Any, view: View | None = _VIEW, labels: tuple[str, ...] = ()) -> Outcome:
    arrays = [np.asarray(output, dtype=np.float32) for output in outputs]
    return conclude(result, [arrays], [np.zeros((1, 32, 32, 3), dtype=np.float32)], view, labels)


def test_classes_are_the_greatest_scores_with_their_labels() -> None:
    """Softmax of logits ln 1, ln 2, ln 5; those under min_score are left out."""
    result = ClassificationResult(softmax=True, top=3, min_score=0.2)

    document = _read(result, np.log([[1.0, 2.0, 5.0]]), labels=("a", "b", "c")).document

    assert document == {
        "kind": "classification",
        "classes": [{"index": 2, "score": 0.625, "label": "c"}, {"index": 1, "score": 0.25, "label": "b"}],
    }


def test_boxes_that_the_model_suppressed_are_read_in_pixels() -> None:
    """TFLite_Detection_PostProcess: count says how many of the rows count; min_score holds."""
    boxes = [[[0.1, 0.2, 0.5, 0.6], [0, 0, 1, 1], [0, 0, 1, 1]]]

    objects = _read(DetectionResult(), boxes, [[1, 0, 0]], [[0.9, 0.4, 0.9]], [2], labels=("a", "b")).document[
        "objects"
    ]

    box = {"left": 40.0, "top": 10.0, "right": 120.0, "bottom": 50.0}
    assert [(one["label"], one["score"]) for one in objects] == [("b", 0.9)]
    assert objects[0]["box"] == pytest.approx(box)


def test_ssd_offsets_become_boxes_and_are_suppressed_by_class() -> None:
    """Two anchors with the same object leave one; the background's score counts for nothing."""
    anchors = SsdAnchors(grids=((1, 2),), reduce_lowest=False, aspect_ratios=(1.0,))
    assert anchors.count == 4
    scores = [[[0.9, 0.1, 0.0], [0.9, 0.8, 0.0], [0.0, 0.7, 0.6], [0.0, 0.0, 0.0]]]
    result = DetectionResult(form="ssd", scores=1, anchors=anchors, background=True, max_overlap=0.15)

    objects = _read(result, np.zeros((1, 4, 4)), scores).document["objects"]

    assert [(one["index"], one["score"]) for one in objects] == [(0, 0.8), (0, 0.7), (1, 0.6)]
    twice = np.where(np.arange(4)[:, np.newaxis] < 2, 0.9, 0.0) * np.ones((1, 4, 3))
    assert len(_read(result, np.zeros((1, 4, 4)), twice).document["objects"]) == 2  # of each class the first one


def test_default_boxes_are_tensorflows() -> None:
    """SSD MobileNet at 300 × 300: 1,917 boxes; the first ones of the first and the second map."""
    boxes = default_boxes(_ANCHORS)

    assert boxes.shape == (1917, 4)
    np.testing.assert_allclose(boxes[0], [0.5 / 19, 0.5 / 19, 0.1, 0.1])
    np.testing.assert_allclose(boxes[1], [0.5 / 19, 0.5 / 19, 0.2 / 2**0.5, 0.2 * 2**0.5])
    np.testing.assert_allclose(boxes[1083], [0.05, 0.05, 0.35, 0.35])
    np.testing.assert_allclose(boxes[1088], [0.05, 0.05, (0.35 * 0.5) ** 0.5, (0.35 * 0.5) ** 0.5])


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(np.float64, (1917, 4), elements=st.floats(-5, 5, width=32), fill=st.just(0.0)))
def test_offsets_lead_from_default_boxes_and_back(offsets: npt.NDArray[np.float64]) -> None:
    """The inverse of the SSD coder gives the offsets again."""
    boxes, base = decode_offsets(offsets, _ANCHORS), default_boxes(_ANCHORS)

    sizes = boxes[:, 2:] - boxes[:, :2]
    centers = boxes[:, :2] + sizes / 2
    back = np.concatenate([(centers - base[:, :2]) / base[:, 2:] * 10, np.log(sizes / base[:, 2:]) * 5], axis=1)
    np.testing.assert_allclose(back, offsets, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 30), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_what_stays_overlaps_little_and_what_goes_has_a_better_one(count: int, overlap: float, seed: int) -> None:
    """The definition of greedy non-maximum suppression, checked pair by pair."""
    rng = np.random.default_rng(seed)
    low = rng.random((count, 2))
    boxes, scores = np.concatenate([low, low + rng.random((count, 2))], axis=1), rng.random(count)

    kept = suppress(boxes, scores, overlap, 100)

    assert kept == sorted(kept, key=lambda place: -scores[place])
    for place in range(count):
        rivals = [other for other in kept if scores[other] > scores[place]]
        beaten = any(_overlap(boxes[place], boxes[other]) > overlap for other in rivals)
        assert beaten == (place not in kept)


def _overlap(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    shared = np.prod(np.maximum(np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2]), 0))
    return float(shared / (np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2]) - shared))


def test_a_map_is_cut_to_the_picture() -> None:
    """A letterbox of 200 × 100 in 4 × 4: the bars' rows are no part of the mask."""
    scores = np.zeros((1, 4, 4, 3))
    scores[0, :, :, 0] = 0.5
    scores[0, 1:3, 2:, 2] = 1.0
    view = View(0, -50, 200, 200, 200, 100)

    outcome = _read(SegmentationResult(), scores, view=view, labels=("ground", "b", "cat"))

    assert outcome.arrays["mask"].tolist() == [[0, 0, 2, 2], [0, 0, 2, 2]]
    assert [(one["label"], one["share"]) for one in outcome.document["classes"]] == [("ground", 0.5), ("cat", 0.5)]
    assert outcome.document["box"] == {"left": 0.0, "top": 0.0, "right": 200.0, "bottom": 100.0}


def test_keypoints_are_the_peaks_of_heatmaps() -> None:
    """In the middle of their place, or by PoseNet's offsets from a grid that spans the input's 33 pixels."""
    heat = np.full((1, 3, 3, 2), -4.0)
    heat[0, 0, 2, 0], heat[0, 1, 1, 1] = 4.0, 2.0
    offsets = np.zeros((1, 3, 3, 4))
    offsets[0, 0, 2] = [8, 0, -16, 0]
    plain = _read(PoseResult(sigmoid=True, keypoints=("nose", "tail")), heat).document["keypoints"]
    exact = conclude(
        PoseResult(offsets=1),
        [[heat, offsets]],
        [np.zeros((1, 33, 33, 3), dtype=np.float32)],
        View(0, 0, 33, 33, 33, 33),
        (),
    ).document["keypoints"]

    assert [(one["name"], round(one["x"], 2), round(one["y"], 2)) for one in plain] == [
        ("nose", 166.67, 16.67),
        ("tail", 100.0, 50.0),
    ]
    assert plain[0]["score"] == pytest.approx(1 / (1 + np.exp(-4)), abs=1e-6)
    assert (exact[0]["x"], exact[0]["y"]) == (16.0, 8.0)


def test_keypoints_may_come_as_coordinates() -> None:
    found = _read(PoseResult(form="coordinates", min_score=0.5), [[[[0.5, 0.25, 0.9], [0.1, 0.1, 0.2]]]]).document

    assert found["keypoints"] == [{"name": "0", "x": 50.0, "y": 50.0, "score": 0.9}]


def test_an_anomaly_is_the_mean_squared_error() -> None:
    """Averaged over the windows of a sound, and compared with the threshold."""
    given_, back = [np.zeros((1, 4)), np.ones((1, 4))], [[np.full((1, 4), 2.0)], [np.full((1, 4), 1.0)]]

    document = conclude(AnomalyResult(threshold=1.5), back, given_, None, ()).document

    assert document == {"kind": "anomaly", "score": 2.0, "samples": 2, "threshold": 1.5, "anomalous": True}


def test_outputs_that_are_not_finite_are_refused() -> None:
    with pytest.raises(Rejected, match="NaN"):
        _read(ClassificationResult(), [[float("nan"), 1.0]])
