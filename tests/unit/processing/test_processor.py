"""A processor on real models: a picture of a cat, a spoken word, and the sound of a machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regatta_agent.processing.processor import Processor, encode_document
from regatta_agent.serving.interface import image_input
from regatta_agent.serving.tensors import Array
from regatta_protocol.errors import Rejected
from regatta_protocol.plain import read, to_document
from regatta_protocol.processing import AudioInput, ImageInput, Processing
from regatta_runtimes.candidate import parse_candidate_id
from regatta_runtimes.worker.session import Session, open_session
from shared_data import REPOSITORY, shared_file

_WORDS = ("down", "go", "left", "no", "off", "on", "right", "stop", "up", "yes", "silence", "unknown")
_AD = {
    "audio": {
        "features": "log_mel", "window_samples": 1024, "stride_samples": 512, "fft_samples": 1024, "mel_bins": 128,
        "low_hz": 0, "high_hz": 8000, "mel_scale": "slaney", "power": 2, "log": "db", "center": True, "frames": 5,
        "frame_step": 1,
    },
    "result": {"kind": "anomaly", "threshold": 40.0},
}  # fmt: skip


def _session(name: str) -> Session:
    return open_session(parse_candidate_id("litert/given/xnnpack/t1"), shared_file(name))


def _file(path: Path) -> Array:
    tensor = np.empty(1, dtype=object)
    tensor[0] = path.read_bytes()
    return tensor


def _answer(session: Session, processor: Processor, sent: Array, top: int = 0) -> dict[str, Any]:
    prepared = processor.prepare(sent)
    return processor.conclude(prepared, [session.run(sample) for sample in prepared.samples], top).document


@pytest.mark.parametrize("fit", ["stretch", "letterbox", "crop"])
def test_a_picture_of_a_cat(fit: str) -> None:
    """cat.bmp through MobileNetV2 is an Egyptian cat, however it is fitted."""
    session = _session("coral/mobilenet_v2_1.0_224_quant.tflite")
    guessed = image_input(session.inputs)
    assert guessed is not None
    image = read(ImageInput, {**to_document(guessed), "fit": fit})
    labels = shared_file("coral/imagenet_labels.txt").read_text().splitlines()
    processor = Processor(Processing(image=image), session.inputs, session.outputs, labels)

    document = _answer(session, processor, _file(shared_file("coral/cat.bmp")), top=2)

    assert [document["classes"][0]["label"], len(document["classes"])] == ["Egyptian cat", 2]


@pytest.mark.parametrize("name", ["kws_float32", "kws_ref_model"])
def test_a_spoken_word(name: str) -> None:
    """A WAV of "yes" (espeak-ng -s 150 yes, 16 kHz) through the front end of MLPerf Tiny and its model says yes."""
    session = _session(f"mlperf_tiny/{name}.tflite")
    processor = Processor(Processing(audio=AudioInput()), session.inputs, session.outputs, _WORDS)

    best = _answer(session, processor, _file(REPOSITORY / "tests/sounds/yes.wav"))["classes"][0]

    assert best["label"] == "yes" and best["score"] > 0.9


def test_features_of_real_recordings_are_recognized() -> None:
    """kws01's samples are this front end's features: read by the same description they are right nine times in ten."""
    session = _session("mlperf_tiny/kws_ref_model.tflite")
    with np.load(shared_file("mlperf_tiny/kws01_dev.npz")) as data:
        features, truth = data["x"][:60], data["y"][:60]
    processor = Processor(Processing(audio=AudioInput()), session.inputs, session.outputs, _WORDS)
    prepared = processor.prepare(np.zeros(16_000, dtype=np.float32))

    found = [processor.conclude(prepared, [session.run([sample[np.newaxis]])]).document for sample in features]

    right = sum(document["classes"][0]["index"] == int(y) for document, y in zip(found, truth, strict=True))
    assert right >= 50


@pytest.mark.parametrize("name", ["ad01_fp32", "ad01_int8"])
def test_a_machines_sound(name: str) -> None:
    """ad01 knows toy cars: windows are averaged, and a whistle is stranger to it than noise."""
    session = _session(f"mlperf_tiny/{name}.tflite")
    processor = Processor(read(Processing, _AD), session.inputs, session.outputs)
    noise = np.random.default_rng(0).normal(0, 0.02, 16_000).astype(np.float32)
    whistle = np.sin(2 * np.pi * 3000 * np.arange(16_000) / 16_000).astype(np.float32) * 0.5

    calm, loud = _answer(session, processor, noise), _answer(session, processor, whistle)

    assert calm["samples"] == loud["samples"] == 28
    assert loud["score"] > calm["score"] and loud["anomalous"]


def test_what_is_not_described_is_refused() -> None:
    """A model without a picture, a sound or a result says so, and a file is one file."""
    session = _session("mlperf_tiny/ad01_fp32.tflite")
    raw = Processor(Processing(), session.inputs, session.outputs)
    sound = Processor(read(Processing, _AD), session.inputs, session.outputs)

    with pytest.raises(Rejected, match="neither a picture nor a sound"):
        raw.prepare(np.zeros((8, 8, 3), dtype=np.uint8))
    with pytest.raises(Rejected, match="BYTES \\[1\\]"):
        sound.prepare(np.array([b"a", b"b"], dtype=object))


def test_the_document_travels_as_one_json_text() -> None:
    session = _session("mlperf_tiny/kws_ref_model.tflite")
    processor = Processor(Processing(audio=AudioInput()), session.inputs, session.outputs, ("é",))
    prepared = processor.prepare(np.zeros(16_000, dtype=np.int16))

    tensor = encode_document(processor.conclude(prepared, [session.run(prepared.samples[0])]))

    assert tensor.shape == (1,) and b'"kind":"classification"' in tensor[0]
