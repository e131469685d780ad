"""Cameras of V4L2 by the real OpenCV, against the kernel's own test camera; run in a virtual machine by test_v4l2.py.

The driver `vivid` shows eight bars: white, yellow, cyan, green, magenta, red, blue, black.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from polling import wait_until
from regatta_agent.pipeline import pauses
from regatta_agent.pipeline.cameras import CameraSource
from regatta_agent.pipeline.settings import CameraSettings
from regatta_agent.serving.alone import MODEL_NAME, ModelFile, serve_alone
from tiny_models import write_tiny_model

DEVICE = Path("/dev/video0")
_DRIVER = Path("/sys/bus/platform/drivers/vivid")
_BARS = ("white", "yellow", "cyan", "green", "magenta", "red", "blue", "black")
_BRIGHT = {
    "white": "rgb", "yellow": "rg", "cyan": "gb", "green": "g", "magenta": "rb", "red": "r", "blue": "b", "black": "",
}  # fmt: skip
_NOBODY = 65534
_DEADLINE_S = 60.0


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pauses, "FIRST_S", 0.02)
    monkeypatch.setattr(pauses, "CAP_S", 0.1)


def _source(**more: object) -> CameraSource:
    settings = {"kind": "camera", "device": str(DEVICE), "width": 640, "height": 360, "frames_per_s": 100, **more}
    return CameraSource(CameraSettings.model_validate(settings))


class _Reader:
    """Takes a source's frames on a thread of its own."""

    def __init__(self, source: CameraSource) -> None:
        self.source = source
        self.count = 0
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        for _ in self.source.frames():
            self.count += 1

    def stop(self) -> None:
        self.source.stop()
        self._thread.join(_DEADLINE_S)
        assert not self._thread.is_alive()


@pytest.fixture
def reader() -> Iterator[_Reader]:
    made = _Reader(_source())
    yield made
    made.stop()


@pytest.mark.parametrize(("width", "height"), [(640, 360), (1280, 720)])
def test_the_picture_has_the_size_that_was_asked_for_and_its_colours(width: int, height: int) -> None:
    """RGB from the camera's own BGR, which OpenCV leaves in one row, with numbers that count on."""
    source = _source(width=width, height=height)

    frames = list(itertools.islice(source.frames(), 5))

    source.stop()
    assert [frame.key for frame in frames] == [f"{DEVICE}#{number}" for number in range(1, 6)]
    picture = np.asarray(frames[-1].item)
    assert picture.shape == (height, width, 3) and picture.dtype == np.uint8 and picture.flags.c_contiguous
    middles = [width * (2 * bar + 1) // 16 for bar in range(8)]
    bars = picture[height * 3 // 4, middles]
    assert {name: "".join(np.array(list("rgb"))[bar > 128]) for name, bar in zip(_BARS, bars, strict=True)} == _BRIGHT


def test_fewer_pictures_are_taken_when_fewer_are_wanted() -> None:
    """The camera gives at least ten a second; those in between are left, so that none that is taken is old."""
    source = _source(frames_per_s=2)
    began = time.monotonic()

    list(itertools.islice(source.frames(), 4))

    source.stop()
    assert 1.0 < time.monotonic() - began < 20.0


def test_a_camera_that_is_unplugged_is_told_and_opened_again_when_it_is_back(reader: _Reader) -> None:
    """Its driver lets go of it while pictures come, and takes it up again."""
    wait_until(lambda: reader.count > 3, _DEADLINE_S, "pictures come")
    (_DRIVER / "unbind").write_text("vivid.0")
    wait_until(
        lambda: reader.source.problem and "there is no /dev/video0" in reader.source.problem, _DEADLINE_S, "gone"
    )
    before = reader.count
    (_DRIVER / "bind").write_text("vivid.0")
    wait_until(lambda: reader.count > before + 3 and reader.source.problem is None, _DEADLINE_S, "pictures come again")


def test_a_camera_that_another_program_has_is_told_so(reader: _Reader) -> None:
    """V4L2 lets two open it, and one read."""
    wait_until(lambda: reader.count > 3, _DEADLINE_S, "pictures come")
    second = _Reader(_source())
    problem = wait_until(lambda: second.source.problem, _DEADLINE_S, "the reason is told")
    assert problem is not None
    assert "another program has it" in problem or "no pictures" in problem
    reader.stop()
    wait_until(lambda: second.count > 3, _DEADLINE_S, "it gets the camera once that is free")
    second.stop()


def test_a_user_who_may_not_open_it_is_told_which_group_may() -> None:
    """In a process of a user who is in no group."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setuid(_NOBODY)
        source = _source()
        threading.Thread(target=lambda: list(source.frames()), daemon=True).start()
        try:
            os.write(theirs, str(wait_until(lambda: source.problem, _DEADLINE_S, "the reason is told")).encode())
        finally:
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    assert b"add it to the group" in told


def test_a_pipeline_asks_a_model_about_the_cameras_pictures(tmp_path: Path) -> None:
    """`regatta-agent pipeline run`, from the camera through a worker to a file."""
    out, config = tmp_path / "out.jsonl", tmp_path / "pipelines.toml"
    config.write_text(
        f'[gate]\nmodel = "{MODEL_NAME}"\ntop = 1\n'
        f'source = {{ kind = "camera", device = "{DEVICE}", width = 640, height = 360, frames_per_s = 10 }}\n'
        f'sinks = [{{ kind = "file", path = "{out}" }}]\n'
    )
    write_tiny_model(tmp_path / "tiny.tflite")
    places = ["--config", str(config), "--run-dir", str(tmp_path), "--status-dir", str(tmp_path / "status")]
    with serve_alone(ModelFile(tmp_path / "tiny.tflite")) as socket:
        (tmp_path / f"{MODEL_NAME}.sock").symlink_to(socket)
        process = subprocess.Popen(
            [sys.executable, "-m", "regatta_agent", "pipeline", "run", "gate", *places, "--json"],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
        )
        try:
            wait_until(lambda: out.exists() and out.read_text().count("\n") >= 5, _DEADLINE_S, "results are there")
            process.send_signal(signal.SIGTERM)
            told = json.loads(process.communicate(timeout=60)[0])
        finally:
            process.kill()
            process.wait()
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert process.returncode == 0
    assert lines[0]["key"] == f"{DEVICE}#1" and all(len(line["classes"]) == 1 for line in lines)
    assert told["answered"] == len(lines) and told["undelivered"] == 0
