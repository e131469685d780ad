"""Frames of cameras and streams: OpenCV for V4L2, ffmpeg or GStreamer for RTSP and everything else that they open.

Frames are uint8 [height, width, 3], RGB. One that went away is opened again, after a pause that doubles up to a cap.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from typing import IO, Any

import numpy as np

from regatta_agent.pipeline.frames import Frame
from regatta_agent.pipeline.settings import CameraSettings, StreamSettings
from regatta_agent.serving.tensors import Array
from regatta_protocol.errors import Misuse

__all__ = ["CameraSource", "StreamSource", "stream_command"]

_FIRST_PAUSE_S, _CAP_S = 0.5, 30.0
_END_S = 5.0


class CameraSource:
    """A V4L2 camera."""

    def __init__(self, settings: CameraSettings) -> None:
        """Keep the camera.

        Raises:
            Misuse: when OpenCV is not installed.
        """
        try:
            import cv2
        except ImportError as err:
            raise Misuse("a camera needs OpenCV: pip install 'regatta-edge[camera]'") from err
        self._cv2: Any = cv2
        self._settings = settings
        self._stopping = threading.Event()
        self.refused = 0

    def stop(self) -> None:
        self._stopping.set()

    def frames(self) -> Iterator[Frame]:
        pause_s = _FIRST_PAUSE_S
        while not self._stopping.is_set():
            for frame in self._opened():
                pause_s = _FIRST_PAUSE_S
                yield frame
            self._stopping.wait(pause_s)
            pause_s = min(_CAP_S, 2 * pause_s)

    def _opened(self) -> Iterator[Frame]:
        """Yield frames until the camera gives none any more."""
        cv2, settings = self._cv2, self._settings
        camera = cv2.VideoCapture(settings.device, cv2.CAP_V4L2)
        camera.set(cv2.CAP_PROP_FRAME_WIDTH, settings.width)
        camera.set(cv2.CAP_PROP_FRAME_HEIGHT, settings.height)
        try:
            number, due = 0, time.monotonic()
            while not self._stopping.is_set():
                found, picture = camera.read()  # waits for the next one, so that none is old
                if not found:
                    return
                if time.monotonic() < due:
                    continue
                due = max(due + 1 / settings.frames_per_s, time.monotonic())
                number += 1
                yield Frame(f"{settings.device}#{number}", np.ascontiguousarray(picture[:, :, ::-1]), time.time())
        finally:
            camera.release()


class StreamSource:
    """What ffmpeg or GStreamer decodes, as raw frames over a pipe."""

    def __init__(self, settings: StreamSettings) -> None:
        """Keep the stream.

        Raises:
            Misuse: when the program is not installed.
        """
        self._command = stream_command(settings)
        if shutil.which(self._command[0]) is None:
            raise Misuse(f"{self._command[0]} is not installed: apt install {_PACKAGES[settings.program]}")
        self._settings = settings
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._number = 0
        self.refused = 0

    def stop(self) -> None:
        self._stopping.set()
        process = self._process
        if process is not None:
            process.terminate()

    def frames(self) -> Iterator[Frame]:
        pause_s = _FIRST_PAUSE_S
        while not self._stopping.is_set():
            for frame in self._opened():
                pause_s = _FIRST_PAUSE_S
                yield frame
            if not self._settings.restart:
                return
            self._stopping.wait(pause_s)
            pause_s = min(_CAP_S, 2 * pause_s)

    def _opened(self) -> Iterator[Frame]:
        """Yield frames until the program ends."""
        shape = (self._settings.height, self._settings.width, 3)
        process = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self._process = process
        assert process.stdout is not None
        try:
            while not self._stopping.is_set():
                pixels = _read_exactly(process.stdout, shape[0] * shape[1] * shape[2])
                if pixels is None:
                    return
                self._number += 1
                yield Frame(f"{self._settings.url}#{self._number}", pixels.reshape(shape), time.time())
        finally:
            process.terminate()
            try:
                process.communicate(timeout=_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()


_PACKAGES = {"ffmpeg": "ffmpeg", "gstreamer": "gstreamer1.0-tools gstreamer1.0-plugins-good gstreamer1.0-libav"}


def stream_command(settings: StreamSettings) -> list[str]:
    """Return the program's arguments that write raw RGB frames of the size and rate to standard output."""
    rate = Fraction(settings.frames_per_s).limit_denominator(1000)
    if settings.program == "ffmpeg":
        transport = ["-rtsp_transport", "tcp"] if settings.url.startswith("rtsp") else []
        wanted = f"fps={rate.numerator}/{rate.denominator},scale={settings.width}:{settings.height}"
        return [
            "ffmpeg", "-nostdin", "-loglevel", "error", *transport, *settings.options, "-i", settings.url, "-an",
            "-vf", wanted, "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1",
        ]  # fmt: skip
    caps = f"video/x-raw,format=RGB,width={settings.width},height={settings.height}"
    return [
        "gst-launch-1.0", "-q", "uridecodebin", f"uri={settings.url}", "!", "videoconvert", "!", "videoscale", "!",
        "videorate", "!", f"{caps},framerate={rate.numerator}/{rate.denominator}", "!", "fdsink", "fd=1",
    ]  # fmt: skip


def _read_exactly(stream: IO[bytes], size: int) -> Array | None:
    """Return so many bytes, or None when the stream ends before."""
    pixels = np.empty(size, dtype=np.uint8)
    view, have = pixels.data, 0
    while have < size:
        count = stream.readinto(view[have:])  # type: ignore[attr-defined]  # a pipe's BufferedReader has it
        if not count:
            return None
        have += count
    return pixels
