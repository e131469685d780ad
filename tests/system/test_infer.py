"""`regatta-agent infer` on model files: sounds, standard input, drawings, and refusals that name the sample."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from regatta_agent.asking import Reply
from regatta_agent.cli.commands import cli
from regatta_agent.cli.drawing import draw
from regatta_protocol.errors import Rejected
from shared_data import REPOSITORY, shared_file

pytestmark = pytest.mark.system

_WORDS = "down go left no off on right stop up yes silence unknown"


def _infer(*arguments: object, sent: bytes = b"") -> Result:
    return CliRunner().invoke(cli, ["infer", *map(str, arguments)], input=sent)


def test_a_sound_is_heard_from_a_file_and_from_standard_input(tmp_path: Path) -> None:
    """ "yes" by the keyword model's file, described by an empty [audio]: the defaults are that model's."""
    model, sound = shared_file("mlperf_tiny/kws_float32.tflite"), REPOSITORY / "tests/sounds/yes.wav"
    (tmp_path / "kws.toml").write_text("[audio]\n")
    (tmp_path / "words.txt").write_text("\n".join(_WORDS.split()) + "\n")
    described = ("--processing", tmp_path / "kws.toml", "--names", tmp_path / "words.txt")
    (tmp_path / "bad.wav").write_bytes(b"RIFF")

    result = _infer(model, sound, "-", *described, "--top", 1, "--json", sent=sound.read_bytes())
    refused = _infer(model, tmp_path / "bad.wav", *described)

    answers = [json.loads(line) for line in result.output.splitlines()]
    assert [answer["file"] for answer in answers] == [str(sound), "-"]
    assert [answer["classes"][0]["label"] for answer in answers] == ["yes", "yes"]
    assert isinstance(refused.exception, Rejected) and "bad.wav: this is no WAV" in str(refused.exception)


def test_the_answer_is_drawn_on_the_picture(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="pictures need the images extra")
    cat, model = shared_file("coral/cat.bmp"), shared_file("coral/mobilenet_v1_0.25_128_quant.tflite")

    result = _infer(model, cat, "--plot", tmp_path / "cat.png")
    twice = _infer(model, cat, cat, "--plot", tmp_path / "cat.png")
    served = _infer("cats", cat, "--names", cat)

    with image.open(cat) as before, image.open(tmp_path / "cat.png") as after:
        assert after.size == before.size and after.tobytes() != before.convert("RGB").tobytes()
    assert "drawn in" in result.output
    assert isinstance(twice.exception, Rejected) and "give a folder" in str(twice.exception)
    assert isinstance(served.exception, Rejected) and "--names" in str(served.exception)


def test_boxes_keypoints_and_masks_are_drawn_where_they_are() -> None:
    """On black: a box's edge, a keypoint's dot and a mask's half leave color there and nowhere else."""
    pytest.importorskip("PIL", reason="pictures need the images extra")
    black = np.zeros((200, 300, 3), dtype=np.uint8)
    box = {"left": 100.0, "top": 50.0, "right": 200.0, "bottom": 150.0}
    found = {"kind": "detection", "objects": [{"index": 0, "label": "cat", "score": 0.9, "box": box}]}
    point = {"kind": "pose", "keypoints": [{"name": "nose", "x": 250.0, "y": 20.0, "score": 1.0}]}
    area = {"left": 0.0, "top": 0.0, "right": 300.0, "bottom": 200.0}
    halves = Reply({"kind": "segmentation", "classes": [], "box": area}, np.array([[0, 1]], dtype=np.uint8))

    boxes, points, masked = (
        np.asarray(draw(black, reply, "k")).any(axis=2) for reply in (Reply(found), Reply(point), halves)
    )

    assert boxes[100, 100] and boxes[150, 150] and not boxes[100, 150] and not boxes[10, 10]
    assert points[20, 250] and not points[20, 240]
    assert masked[:, 151:].all() and not masked[:, :149].any()
    with pytest.raises(Rejected, match="no picture"):
        draw(np.zeros(4, dtype=np.float32), Reply(found), "k")
