"""A description of processing that does not fit a model is refused, with the field and what the model has."""

from __future__ import annotations

from typing import Any

import pytest

from regatta_protocol.errors import Rejected
from regatta_protocol.fitting import check_processing
from regatta_protocol.manifest import Manifest
from regatta_protocol.plain import read
from regatta_protocol.processing import AudioInput, Processing
from regatta_protocol.values import TensorSpec


def _spec(*shape: int) -> TensorSpec:
    return TensorSpec(name="t", dtype="float32", shape=shape)


_PICTURE = _spec(1, 32, 32, 3)
_BOXES = (_spec(1, 10, 4), _spec(1, 10), _spec(1, 10), _spec(1))


@pytest.mark.parametrize(
    ("processing", "inputs", "outputs"),
    [
        ({"image": {"height": 32, "width": 32}}, [_PICTURE], [_spec(1, 5)]),
        ({"image": {"height": 32, "width": 32, "layout": "nchw"}}, [_spec(-1, 3, 32, 32)], [_spec(1, 5)]),
        ({"audio": {}}, [_spec(-1, 49, 10, 1)], [_spec(1, 12)]),
        ({"result": {"kind": "detection"}}, [_PICTURE], _BOXES),
        ({"result": {"kind": "detection", "count": -1}}, [_PICTURE], _BOXES[:3]),
        ({"result": {"kind": "segmentation"}}, [_PICTURE], [_spec(1, 8, 8, 21)]),
        ({"result": {"kind": "pose", "offsets": 1}}, [_PICTURE], [_spec(1, 9, 9, 17), _spec(1, 9, 9, 34)]),
        ({"result": {"kind": "anomaly"}}, [_spec(-1, 640)], [_spec(1, 640)]),
    ],
)
def test_what_fits_passes(processing: Any, inputs: list[TensorSpec], outputs: list[TensorSpec]) -> None:
    check_processing(read(Processing, processing), inputs, outputs)


@pytest.mark.parametrize(
    ("processing", "inputs", "outputs", "says"),
    [
        ({"image": {"height": 32, "width": 30}}, [_PICTURE], [_spec(1, 5)], r"image: \[1, 32, 30, 3\]"),
        ({"image": {"height": 32, "width": 32}}, [_PICTURE, _PICTURE], [_spec(1, 5)], "2 inputs"),
        ({"audio": {"frames": 48}}, [_spec(1, 49, 10, 1)], [_spec(1, 12)], "are 480 numbers.*takes 490"),
        ({"result": {"kind": "classification"}}, [_PICTURE], [_spec(1, 8, 8, 5)], "no row of scores"),
        ({"result": {"kind": "classification", "output": 1}}, [_PICTURE], [_spec(1, 5)], "has 1 outputs"),
        ({"result": {"kind": "detection"}}, [_PICTURE], [_spec(1, 5)] * 4, "result.boxes"),
        ({"result": {"kind": "detection"}}, [_PICTURE], _BOXES[:3], "result.count is 3"),
        ({"result": {"kind": "detection", "form": "boxes"}}, [_PICTURE], _BOXES, "result.scores"),
        ({"result": {"kind": "segmentation"}}, [_PICTURE], [_spec(1, 5)], "no map"),
        ({"result": {"kind": "pose", "keypoints": ["a"]}}, [_PICTURE], [_spec(1, 9, 9, 17)], "names 1"),
        ({"result": {"kind": "pose", "offsets": 1}}, [_PICTURE], [_spec(1, 9, 9, 17)] * 2, "result.offsets"),
        ({"result": {"kind": "anomaly"}}, [_spec(-1, 640)], [_spec(1, 64)], "no reconstruction"),
    ],
)
def test_what_does_not_fit_is_named(
    processing: Any, inputs: list[TensorSpec], outputs: list[TensorSpec], says: str
) -> None:
    with pytest.raises(Rejected, match=says):
        check_processing(read(Processing, processing), inputs, outputs)


@pytest.mark.parametrize(
    "values",
    [
        {"image": {"height": 8, "width": 8}, "audio": {}},
        {"image": {"height": 8, "width": 8, "channels": 1, "channel_mean": [1, 2, 3]}},
        {"audio": {"window_samples": 600}},
        {"audio": {"high_hz": 9000}},
        {"audio": {"coefficients": 41}},
        {"result": {"kind": "detection", "form": "ssd"}},
        {"result": {"kind": "reading of tea leaves"}},
    ],
)
def test_what_contradicts_itself_is_refused(values: Any) -> None:
    with pytest.raises(Rejected):
        read(Processing, values)


def test_a_clip_is_as_long_as_its_frames_take() -> None:
    """KWS: 49 frames of 480 every 320 are 15,840 samples, the 49th within the second."""
    assert AudioInput().clip_samples == 15_840


def _manifest(**more: Any) -> Manifest:
    file = {"digest": "0" * 64, "size_bytes": 1}
    variant = {"name": "v", "file": file, "precision": "int8", "inputs": [], "outputs": []}
    picture = {"kind": "image", "height": 8, "width": 8, "channels": 3, "mean": 0.0, "scale": 1.0}
    values = {"name": "m", "version": 1, "created_at": "x", "golden": file, "variants": [variant], "input": picture}
    return Manifest.model_validate({**values, **more})


def test_a_manifest_of_before_has_no_processing_but_its_picture() -> None:
    """Manifests without the new fields parse, and what they say of a picture counts."""
    processing = _manifest().processing

    assert processing.image is not None and processing.image.fit == "stretch"
    assert processing.audio is None and processing.result is None


def test_a_manifest_of_a_newer_fleet_parses_and_its_processing_is_refused_when_asked_for() -> None:
    """The version can be installed and served; only who asks for the processing learns that it is not understood."""
    newer = _manifest(result={"kind": "telepathy"})
    known = _manifest(result={"kind": "classification", "shade": "blue"}, audio={"kind": "audio"})

    with pytest.raises(Rejected, match="m:1 is not understood here: result"):
        _ = newer.processing
    assert known.processing.result is not None and known.processing.image is None
