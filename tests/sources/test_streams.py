"""Streams by the real programs: an RTSP server with a test pattern, read by ffmpeg and by GStreamer, in all weathers.

`./run check-sources` installs what these need; elsewhere they are skipped where a program is missing.
"""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from fault_proxy import Weather, fault_proxy
from polling import wait_until
from regatta_agent.client import Client
from regatta_agent.pipeline import pauses, streams
from regatta_agent.pipeline.counters import Counters
from regatta_agent.pipeline.frames import Frame
from regatta_agent.pipeline.running import Running
from regatta_agent.pipeline.settings import FileSettings, Pipeline, StreamSettings
from regatta_agent.pipeline.streams import StreamSource
from regatta_agent.serving.alone import MODEL_NAME, ModelFile, serve_alone
from regatta_protocol.errors import Misuse, Retryable
from tiny_models import write_tiny_model

Program = Literal["ffmpeg", "gstreamer"]

_SERVER = Path(__file__).parent / "rtsp_server.py"
_DEADLINE_S = 60.0
_PYTHON = "/usr/bin/python3"
_HINT = "./run check-sources installs it"


def _has_server() -> bool:
    words = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
    return Path(_PYTHON).exists() and subprocess.run([_PYTHON, "-c", words], capture_output=True).returncode == 0


@pytest.fixture(params=["ffmpeg", "gstreamer"])
def program(request: pytest.FixtureRequest) -> Program:
    found: Program = request.param
    name = {"ffmpeg": "ffmpeg", "gstreamer": "gst-launch-1.0"}[found]
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed: {_HINT}")
    return found


@pytest.fixture(scope="session")
def rtsp() -> None:
    if not _has_server():
        pytest.skip(f"gst-rtsp-server is not installed: {_HINT}")


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses and little patience, so that a test need not wait for them."""
    monkeypatch.setattr(pauses, "FIRST_S", 0.05)
    monkeypatch.setattr(pauses, "CAP_S", 0.4)
    monkeypatch.setattr(streams, "SILENCE_S", 3.0)


class Server:
    """The RTSP server as a process that can be ended in every way."""

    def __init__(self, encoding: str, *options: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = int(probe.getsockname()[1])
        self._argv = [_PYTHON, str(_SERVER), str(self.port), encoding, *options]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"rtsp://127.0.0.1:{self.port}/pattern"

    def start(self) -> None:
        self._process = subprocess.Popen(self._argv, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


@contextmanager
def server(encoding: str, *options: str) -> Iterator[Server]:
    found = Server(encoding, *options)
    found.start()
    try:
        yield found
    finally:
        found.stop()


class Reading:
    """A source at work in a thread of its own."""

    def __init__(self, **settings: object) -> None:
        given = {"kind": "stream", "width": 64, "height": 48, "frames_per_s": 20, **settings}
        self.source = StreamSource(StreamSettings.model_validate(given))
        self.frames: list[Frame] = []
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> Reading:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.source.stop()
        self.ended()

    def _read(self) -> None:
        try:
            for frame in self.source.frames():
                self.frames.append(frame)
        except Retryable as err:
            self.error = err

    def more(self, count: int = 5) -> None:
        """Return when so many frames more have come."""
        wanted = len(self.frames) + count
        wait_until(lambda: len(self.frames) >= wanted, _DEADLINE_S, f"{count} frames come: {self.source.problem}")

    def ended(self) -> None:
        self._thread.join(_DEADLINE_S)
        assert not self._thread.is_alive()


def _pictures(frames: list[Frame]) -> list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    pictures = [np.asarray(frame.item) for frame in frames]
    assert all(one.shape == (48, 64, 3) and one.dtype == np.uint8 for one in pictures)
    return pictures


@pytest.mark.usefixtures("rtsp", "hasty")
@pytest.mark.parametrize("encoding", ["jpeg", "h264"])
def test_a_pattern_comes_through_with_its_colors_and_moves(program: Program, encoding: str) -> None:
    """A white ball on black that is elsewhere in each frame; the sound beside it does not disturb."""
    with server(encoding, "--audio") as found, Reading(url=found.url, program=program) as reading:
        reading.more(10)
    pictures = _pictures(reading.frames)

    assert all(one.max() > 200 and one.min() < 40 for one in pictures)
    assert any(np.abs(one.astype(int) - pictures[0]).max() > 100 for one in pictures[1:])
    assert [frame.key for frame in reading.frames[:2]] == [f"{found.url}#1", f"{found.url}#2"]


@pytest.mark.usefixtures("rtsp", "hasty")
def test_a_server_that_dies_is_waited_for(program: Program) -> None:
    """Killed in the middle, its reason is told and tries are bounded by pauses; back again, frames go on."""
    with server("jpeg") as found, Reading(url=found.url, program=program) as reading:
        reading.more()
        assert reading.source.problem is None
        found.stop()
        wait_until(lambda: reading.source.problem is not None, _DEADLINE_S, "its end is noticed")
        wait_until(lambda: "cannot be read" in (reading.source.problem or ""), _DEADLINE_S, "a try has failed")
        assert "127.0.0.1" in (reading.source.problem or "")
        found.start()
        reading.more()

        assert reading.source.problem is None
    _pictures(reading.frames)


@pytest.mark.usefixtures("rtsp", "hasty")
def test_a_server_that_hangs_is_left(program: Program) -> None:
    """It keeps its connection and sends nothing: after a while that is told, and it is opened again."""
    with server("jpeg") as found, Reading(url=found.url, program=program) as reading:
        reading.more()
        found.signal(signal.SIGSTOP)
        try:
            wait_until(lambda: reading.source.problem is not None, _DEADLINE_S, "its silence is noticed")
        finally:
            found.signal(signal.SIGCONT)
        reading.more()
    _pictures(reading.frames)


@pytest.mark.usefixtures("rtsp", "hasty")
def test_a_line_that_is_cut_now_and_then_gives_whole_frames_only(program: Program) -> None:
    """Each connection breaks in the middle of a record; every frame that comes has its size."""
    with server("jpeg") as found, fault_proxy(found.port) as proxy:
        url = f"rtsp://127.0.0.1:{proxy.port}/pattern"
        proxy.weather = Weather(cut_down_bytes=60_000)
        with Reading(url=url, program=program) as reading:
            wait_until(lambda: proxy.connections >= 4, _DEADLINE_S, "it is opened again and again")
            reading.more(3)
    _pictures(reading.frames)


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds of H.264 with a name that has to be quoted."""
    if shutil.which("ffmpeg") is None:
        pytest.skip(f"ffmpeg is not installed: {_HINT}")
    path = tmp_path_factory.mktemp("video") / "a b.mkv"
    command = [
        "ffmpeg",
        "-loglevel",
        "error",
        "-f",
        "lavfi",
        "-i",
        "testsrc=duration=3:rate=10:size=160x120",
        str(path),
    ]
    subprocess.run(command, check=True, timeout=_DEADLINE_S)
    return path


@pytest.mark.usefixtures("hasty")
def test_a_file_ends_where_it_ends(program: Program, video: Path) -> None:
    """At the wanted rate, with the pipeline; a file to be played again is."""
    with Reading(url=str(video), program=program, restart=False, frames_per_s=5) as once:
        once.ended()
    assert once.error is None and 13 <= len(once.frames) <= 17
    with Reading(url=str(video), program=program, frames_per_s=5) as again:
        again.more(25)
    _pictures(once.frames)


@pytest.mark.usefixtures("hasty")
def test_a_damaged_file_gives_what_can_be_read(program: Program, video: Path, tmp_path: Path) -> None:
    """Bytes flipped all over it: whole frames or none, and an end in time."""
    data = bytearray(video.read_bytes())
    for place in np.random.default_rng(5).integers(1000, len(data), 40):
        data[place] ^= 0xFF
    path = tmp_path / "damaged.mkv"
    path.write_bytes(data)
    with Reading(url=str(path), program=program, restart=False) as reading:
        reading.ended()

    assert reading.frames or reading.error is not None
    _pictures(reading.frames)


@pytest.mark.usefixtures("hasty")
def test_what_cannot_be_opened_says_why_and_hides_passwords(program: Program, tmp_path: Path) -> None:
    """A stream that ends with its program fails with the program's words; nothing of it names the password."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    for url in (str(tmp_path / "absent.mkv"), f"rtsp://admin:s3cret@127.0.0.1:{port}/pattern"):
        with Reading(url=url, program=program, restart=False) as reading:
            reading.ended()

        assert isinstance(reading.error, Retryable) and reading.frames == []
        assert "cannot be read" in str(reading.error) and "s3cret" not in str(reading.error)


def test_a_program_that_is_missing_is_named(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the packages to install."""
    monkeypatch.setenv("PATH", "/nowhere")

    with pytest.raises(Misuse, match="apt install"):
        Reading(url="rtsp://cam/1", program=program)


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A served model that takes pictures."""
    path = write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.tflite")
    with serve_alone(ModelFile(path)) as where, Client(where) as found:
        yield found


def _pipeline(tmp_path: Path, source: dict[str, object], **more: object) -> Pipeline:
    sink = FileSettings(kind="file", path=tmp_path / "out.jsonl")
    given = {"model": MODEL_NAME, "source": {"kind": "stream", "width": 64, "height": 48, **source}, "sinks": [sink]}
    return Pipeline.model_validate({**given, **more})


def _run(running: Running, until: Callable[[], bool]) -> Counters:
    told: list[Counters] = []
    thread = threading.Thread(target=lambda: told.append(running.run()))
    thread.start()
    try:
        wait_until(until, _DEADLINE_S, "the pipeline comes so far")
    finally:
        running.stop()
        thread.join(_DEADLINE_S)
    assert not thread.is_alive()
    return told[0]


def _lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.usefixtures("rtsp", "hasty")
def test_a_stream_is_answered_by_a_served_model(program: Program, client: Client, tmp_path: Path) -> None:
    """From the RTSP server through the model into the file: each result has its frame, and all are counted."""
    with server("h264") as found:
        pipeline = _pipeline(tmp_path, {"url": found.url, "program": program, "frames_per_s": 5})
        running = Running("gate", pipeline, client, tmp_path / "status")
        counters = _run(running, lambda: len(_lines(tmp_path / "out.jsonl")) >= 5)
    lines = _lines(tmp_path / "out.jsonl")

    assert all(str(line["key"]).startswith(found.url) and line["classes"] for line in lines)
    assert counters.answered == len(lines) and (counters.refused, counters.undelivered, counters.failed) == (0, 0, 0)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("policy", ["drop-oldest", "drop-newest", "block"])
def test_frames_that_come_faster_than_answers_are_dropped_by_policy(
    client: Client, tmp_path: Path, video: Path, policy: str
) -> None:
    """A file is decoded faster than it is answered: what finds no room is counted, and to block loses nothing."""
    source: dict[str, object] = {"url": str(video), "restart": False, "frames_per_s": 240, "width": 320, "height": 240}
    pipeline = _pipeline(tmp_path, source, when_full=policy, queue_length=1)

    counters = Running("gate", pipeline, client, tmp_path / "status").run()

    assert counters.came > 600
    assert counters.answered + counters.dropped == counters.came == counters.answered + counters.dropped
    assert (counters.dropped == 0) == (policy == "block")
    keys = [int(str(line["key"]).rpartition("#")[2]) for line in _lines(tmp_path / "out.jsonl")]
    assert keys == sorted(keys) and len(keys) == counters.answered
    if policy == "drop-oldest":
        assert keys[-1] == counters.came
