"""Frames of V4L2 cameras, by OpenCV: uint8 [height, width, 3], RGB.

A camera that is missing or went away is opened again, after pauses that double up to a cap; `problem` says why.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from regatta_agent.pipeline.frames import Frame
from regatta_agent.pipeline.pauses import Pauses
from regatta_agent.pipeline.settings import CameraSettings
from regatta_agent.serving.tensors import Array
from regatta_protocol.errors import Misuse

__all__ = ["CameraSource"]


class CameraSource:
    """A camera; `api` is OpenCV's number of another of its backends than V4L2, which opens other things."""

    def __init__(self, settings: CameraSettings, api: int | None = None) -> None:
        """Keep the camera.

        Raises:
            Misuse: when OpenCV is not installed.
        """
        try:
            import cv2
        except ImportError as err:
            raise Misuse("a camera needs OpenCV: pip install 'regatta-edge[camera]'") from err
        self._cv2: Any = cv2
        self._api = cv2.CAP_V4L2 if api is None else api
        self._settings = settings
        self._stopping = threading.Event()
        self._number = 0
        self._due_s = 0.0  # monotonic: when the next frame is wanted
        self.refused = 0
        self.problem: str | None = None

    def stop(self) -> None:
        self._stopping.set()

    def frames(self) -> Iterator[Frame]:
        pauses = Pauses(self._stopping)
        while not self._stopping.is_set():
            for frame in self._opened():
                pauses.restart()
                yield frame
            pauses.wait()

    def _opened(self) -> Iterator[Frame]:
        """Yield frames until the camera gives none any more."""
        cv2, settings = self._cv2, self._settings
        period_s = 1 / settings.frames_per_s
        self.problem = _obstacle(Path(settings.device))
        if self.problem is not None:
            return
        camera = cv2.VideoCapture(settings.device, self._api)
        camera.set(cv2.CAP_PROP_FRAME_WIDTH, settings.width)
        camera.set(cv2.CAP_PROP_FRAME_HEIGHT, settings.height)
        try:
            if not camera.isOpened():
                self.problem = f"{settings.device} is no camera that OpenCV opens, or another program has it"
                return
            while not self._stopping.is_set():
                found, picture = camera.read()  # waits for the next one, so that none is old; ten seconds at the most
                if not found:
                    self.problem = f"{settings.device} gives no pictures any more: was it unplugged?"
                    return
                now_s = time.monotonic()
                if now_s < self._due_s:
                    continue
                self._due_s = max(self._due_s + period_s, now_s + period_s / 2)  # the rate on average, and no bursts
                height, width = (
                    int(camera.get(size)) for size in (cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH)
                )
                rgb = _rgb(picture, height, width)
                if rgb is None:
                    self.problem = (
                        f"{settings.device} gives pictures of {picture.shape} {picture.dtype}, which are no colours: "
                        "set another format (v4l2-ctl --list-formats-ext shows them), width or height"
                    )
                    return
                self._number += 1
                yield Frame(f"{settings.device}#{self._number}", rgb, time.time())
        finally:
            camera.release()


def _rgb(picture: Array, height: int, width: int) -> Array | None:
    """Return OpenCV's picture as [height, width, 3] in RGB, or None when it is none.

    OpenCV turns each format of V4L2 into BGR, but leaves what is BGR already (the Raspberry Pi's camera has that) as it
    came: in one row.
    """
    if picture.ndim == 2 and picture.size == height * width * 3:
        picture = picture.reshape(height, width, 3)
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        return None
    return np.ascontiguousarray(picture[:, :, ::-1])


def _obstacle(device: Path) -> str | None:
    """Return why the device cannot be opened, with what to do, or None."""
    if not device.exists():
        others = ", ".join(sorted(str(path) for path in Path("/dev").glob("video*")))
        return f"there is no {device}: is the camera plugged in? " + (
            f"Here are {others}" if others else "Here is none"
        )
    if not os.access(device, os.R_OK | os.W_OK):
        return f"{device} may not be opened by this user: add it to the group of the device (mostly video)"
    return None
