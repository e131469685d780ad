"""Frames of streams and files, decoded by ffmpeg or GStreamer: uint8 [height, width, 3], RGB, raw over a pipe.

The program is a process of its own. When it ends, or says nothing for too long (a server that hangs), it is started
again after a pause, unless the stream shall end with it. Its last words are kept to say why.
"""

from __future__ import annotations

import collections
import os
import re
import select
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import IO

import numpy as np

from regatta_agent.pipeline.frames import Frame
from regatta_agent.pipeline.pauses import Pauses
from regatta_agent.pipeline.settings import StreamSettings
from regatta_agent.serving.tensors import Array
from regatta_protocol.errors import Misuse, Retryable

__all__ = ["StreamSource", "stream_command", "without_password"]

_END_S = 5.0
SILENCE_S = 20.0  # between frames, and before the first: RTSP's own time-outs are 5 to 10 s
_PERIODS = 3  # of frames, where these are longer
_LAST_WORDS, _LONGEST_WORD = 5, 300  # lines and characters
_PACKAGES = {
    "ffmpeg": "ffmpeg",
    "gstreamer": "gstreamer1.0-tools gstreamer1.0-plugins-good gstreamer1.0-plugins-bad gstreamer1.0-libav",
}


class StreamSource:
    """What ffmpeg or GStreamer decodes."""

    def __init__(self, settings: StreamSettings) -> None:
        """Keep the stream.

        Raises:
            Misuse: when the program is not installed.
        """
        self._command = stream_command(settings)
        if shutil.which(self._command[0]) is None:
            raise Misuse(f"{self._command[0]} is not installed: apt install {_PACKAGES[settings.program]}")
        self._settings = settings
        self._name = without_password(settings.url)
        self._silence_s = max(SILENCE_S, _PERIODS / settings.frames_per_s)
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._number = 0
        self.refused = 0
        self.problem: str | None = None

    def stop(self) -> None:
        self._stopping.set()
        process = self._process
        if process is not None:
            process.terminate()

    def frames(self) -> Iterator[Frame]:
        """Yield frames as they come.

        Raises:
            Retryable: when the program failed and shall not be started again.
        """
        pauses = Pauses(self._stopping)
        while not self._stopping.is_set():
            for frame in self._opened():
                pauses.restart()
                self.problem = None
                yield frame
            if not self._settings.restart:
                if self.problem is not None and not self._stopping.is_set():
                    raise Retryable(self.problem)
                return
            pauses.wait()

    def _opened(self) -> Iterator[Frame]:
        """Yield frames until the program ends or falls silent, and say then why it did."""
        shape = (self._settings.height, self._settings.width, 3)
        process = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
        )
        self._process = process
        assert process.stdout is not None and process.stderr is not None
        words = _LastWords(process.stderr)
        silent = False
        try:
            while not self._stopping.is_set():
                pixels = _read_exactly(process.stdout, shape[0] * shape[1] * shape[2], self._silence_s)
                if not isinstance(pixels, np.ndarray):
                    silent = pixels == "silent"
                    break
                self._number += 1
                yield Frame(f"{self._name}#{self._number}", pixels.reshape(shape), time.time())
        finally:
            status = _end(process, now=silent or self._stopping.is_set())
            self.problem = self._how(status, silent, words.said())

    def _how(self, status: int, silent: bool, said: str) -> str | None:
        """Return what the end of the program means; None: the stream was over."""
        if silent:
            return f"{self._name} gave no frame for {self._silence_s:g} s: it is opened again"
        if status == 0 and self._number > 0:
            return None if not self._settings.restart else f"{self._name} ended: it is opened again"
        how = f"{self._command[0]} ended with status {status}" + (f": {said}" if said else "")
        return f"{self._name} cannot be read: {how}"


class _LastWords:
    """The end of what a program writes to its standard error, read all the time so that it never waits."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._lines: collections.deque[str] = collections.deque(maxlen=_LAST_WORDS)
        self._stream = stream
        self._thread = threading.Thread(target=self._read, name="stream-errors", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with self._stream:
            while line := self._stream.readline(4096):
                text = without_password(line.decode(errors="replace").strip())
                if text:
                    self._lines.append(text[:_LONGEST_WORD])

    def said(self) -> str:
        """Return it in one line, once the program has ended."""
        self._thread.join(_END_S)
        return "; ".join(self._lines)[: 2 * _LONGEST_WORD]


def without_password(text: str) -> str:
    """Return the text with user names and passwords of URLs in it left out."""
    return re.sub(r"(\w+://)[^/\s@]+@", r"\1", text)


def stream_command(settings: StreamSettings) -> list[str]:
    """Return the program's arguments that write raw RGB frames of the size and rate to standard output.

    RTSP goes over TCP: a lost packet would tear pictures, and few firewalls let its UDP ports through.
    """
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
        "gst-launch-1.0", "-q", "uridecodebin", f"uri={_uri(settings.url)}", "!", "videoconvert", "!", "videoscale",
        "!", "videorate", "!", f"{caps},framerate={rate.numerator}/{rate.denominator}", "!", "fdsink", "fd=1",
    ]  # fmt: skip


def _uri(url: str) -> str:
    """Return what GStreamer's uridecodebin takes: a file's name becomes a URI, and rtspt:// is its RTSP over TCP."""
    if "://" not in url:
        return Path(url).absolute().as_uri()
    return "rtspt://" + url.removeprefix("rtsp://") if url.startswith("rtsp://") else url


def _end(process: subprocess.Popen[bytes], *, now: bool) -> int:
    """Return the status of a program that has ended, or is made to."""
    assert process.stdout is not None
    process.stdout.close()  # what it still writes fails
    try:
        if now:
            process.terminate()
        return process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _read_exactly(stream: IO[bytes], size: int, silence_s: float) -> Array | str:
    """Return so many bytes; "ended" when the stream ends before, "silent" when nothing comes for so long."""
    pixels = np.empty(size, dtype=np.uint8)
    view, have = pixels.data, 0
    poll = select.poll()
    poll.register(stream, select.POLLIN)
    while have < size:
        if not poll.poll(1000 * silence_s):
            return "silent"
        count = os.readv(stream.fileno(), [view[have:]])
        if not count:
            return "ended"
        have += count
    return pixels
