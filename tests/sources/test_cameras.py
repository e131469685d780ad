"""Cameras by the real OpenCV: a video file in a camera's place, and devices that are missing or are none.

V4L2 itself needs a device (test_v4l2.py): its part here is what happens without one. `./run check-sources` installs
OpenCV.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polling import wait_until
from regatta_agent.pipeline import pauses
from regatta_agent.pipeline.cameras import CameraSource
from regatta_agent.pipeline.settings import CameraSettings

cv2: Any = pytest.importorskip("cv2", reason="OpenCV is not installed (extra camera): ./run check-sources")

_DEADLINE_S = 30.0


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pauses, "FIRST_S", 0.02)
    monkeypatch.setattr(pauses, "CAP_S", 0.1)


def _settings(device: Path | str, **more: object) -> CameraSettings:
    return CameraSettings.model_validate({"kind": "camera", "device": str(device), "frames_per_s": 240, **more})


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of a red picture."""
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not installed: ./run check-sources")
    path = tmp_path_factory.mktemp("video") / "red.avi"
    source = "color=c=red:size=160x120:rate=10:duration=2"
    subprocess.run(["ffmpeg", "-loglevel", "error", "-f", "lavfi", "-i", source, str(path)], check=True, timeout=60)
    return path


def test_pictures_come_as_rgb_and_a_camera_that_ends_is_opened_again(video: Path) -> None:
    """The file ends as a camera that is unplugged: it is opened anew, and the frames' numbers go on."""
    source = CameraSource(_settings(video), api=cv2.CAP_FFMPEG)

    frames = list(itertools.islice(source.frames(), 50))  # the file has 20

    source.stop()
    assert [frame.key for frame in frames] == [f"{video}#{number}" for number in range(1, 51)]
    for frame in frames:
        picture = np.asarray(frame.item)
        assert picture.shape == (120, 160, 3) and picture.dtype == np.uint8 and picture.flags.c_contiguous
    red, green, blue = np.asarray(frames[0].item).reshape(-1, 3).mean(axis=0)
    assert red > 200 and green < 50 and blue < 50


def test_fewer_pictures_are_taken_than_come_when_fewer_are_wanted(video: Path) -> None:
    """Those in between are read and left, so that none that is taken is old."""
    source = CameraSource(_settings(video, frames_per_s=0.01), api=cv2.CAP_FFMPEG)

    frames = source.frames()
    next(frames)
    thread = threading.Thread(target=lambda: next(frames, None))
    thread.start()
    wait_until(lambda: "unplugged" in (source.problem or ""), _DEADLINE_S, "the rest is read")
    source.stop()
    thread.join(_DEADLINE_S)

    assert not thread.is_alive()


def test_why_there_are_no_pictures_is_told(tmp_path: Path) -> None:
    """Missing, not to be opened by this user, no camera: each in words, while it is tried again."""
    (tmp_path / "closed").touch(mode=0)
    (tmp_path / "text").write_text("no camera")
    cases = {"/dev/video99": "there is no /dev/video99", str(tmp_path / "text"): "is no camera"}
    if os.geteuid() != 0:
        cases[str(tmp_path / "closed")] = "add it to the group"
    for device, words in cases.items():
        source = CameraSource(_settings(device))
        assert words in _problem_of(source)


def _problem_of(source: CameraSource) -> str:
    """Return why it gives no frames, and have it ended."""
    thread = threading.Thread(target=lambda: list(source.frames()))
    thread.start()
    try:
        problem = wait_until(lambda: source.problem, _DEADLINE_S, "the reason is told")
    finally:
        source.stop()
        thread.join(_DEADLINE_S)
    assert not thread.is_alive() and problem is not None
    return problem
