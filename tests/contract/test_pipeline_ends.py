"""Every source and every sink of a pipeline keeps one contract: the fakes here, and the real ones."""

from __future__ import annotations

import http.server
import json
import queue
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anonymous_broker import broker
from polling import wait_until
from regatta_agent.inputs.wanted import Wanted
from regatta_agent.pipeline.frames import Frame
from regatta_agent.pipeline.settings import (
    DirectorySettings,
    FileSettings,
    HttpSettings,
    MqttInSettings,
    MqttOutSettings,
    StreamSettings,
)
from regatta_agent.pipeline.sinks import FileSink, HttpSink, MqttSink, Sink
from regatta_agent.pipeline.sources import DirectorySource, MqttSource, Source
from regatta_agent.pipeline.streams import StreamSource
from regatta_protocol.bus import Connected, Event, Message
from regatta_protocol.errors import Misuse, Retryable
from regatta_protocol.mqtt import MqttBus, MqttConfig

_DEADLINE_S = 20.0
_WANTED = Wanted("m", (2,), "image")


def _bus(port: int, name: str, filters: tuple[str, ...] = ()) -> tuple[MqttBus, queue.Queue[Event]]:
    inbox: queue.Queue[Event] = queue.Queue(100)
    bus = MqttBus(MqttConfig("127.0.0.1", port, name, None, None, None, filters, clean_session=True), inbox)
    bus.start()
    while not isinstance(inbox.get(timeout=_DEADLINE_S), Connected):
        pass
    return bus, inbox


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with broker(tmp_path_factory.mktemp("mosquitto")) as found:
        yield found


# sources


@dataclass
class _ListSource:
    """A fake: gives frames of a list, and then waits."""

    items: queue.SimpleQueue[bytes | None] = field(default_factory=queue.SimpleQueue)
    refused: int = 0
    problem: str | None = None

    def frames(self) -> Iterator[Frame]:
        number = 0
        while (item := self.items.get()) is not None:
            number += 1
            yield Frame(str(number), item, 0.0)

    def stop(self) -> None:
        self.items.put(None)


Given = tuple[Source, Callable[[bytes], None]]


@pytest.fixture(params=["fake", "directory", "mqtt"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Given]:
    """A source, and how something comes to it."""
    if request.param == "fake":
        fake = _ListSource()
        yield fake, fake.items.put
    elif request.param == "directory":
        counter = iter(range(1000))

        def drop(data: bytes) -> None:
            (tmp_path / ".part").write_bytes(data)
            (tmp_path / ".part").rename(tmp_path / f"{next(counter):04}.bin")

        yield DirectorySource(DirectorySettings(kind="directory", path=tmp_path, period_s=0.02), _WANTED), drop
    else:
        port = request.getfixturevalue("port")
        bus, _ = _bus(port, "camera")
        topic = f"in/{tmp_path.name}"
        settings = MqttInSettings(kind="mqtt", host="127.0.0.1", port=port, topic=topic)

        def publish(data: bytes) -> None:
            bus.publish(topic, data, retain=True)  # so it comes whenever the source has subscribed

        yield MqttSource(settings, tmp_path.name), publish
        bus.stop()


def _collected(source: Source) -> tuple[list[Frame], threading.Thread]:
    found: list[Frame] = []

    def collect() -> None:
        for frame in source.frames():
            found.append(frame)

    thread = threading.Thread(target=collect)
    thread.start()
    return found, thread


def test_what_comes_is_given_in_order_and_stop_ends_it(source: Given) -> None:
    """Each thing is one frame with its content, and a stopped source ends soon."""
    one, give = source
    give(b"first")
    found, thread = _collected(one)
    wait_until(lambda: len(found) == 1, _DEADLINE_S, "the first frame comes")
    give(b"second")
    wait_until(lambda: len(found) == 2, _DEADLINE_S, "the second frame comes")
    one.stop()
    thread.join(_DEADLINE_S)

    assert not thread.is_alive()
    assert [frame.item for frame in found] == [b"first", b"second"]
    assert all(frame.key for frame in found) and one.refused == 0


def test_a_folders_files_count_once_and_go_when_they_are_done(tmp_path: Path) -> None:
    """With `remove` a file stays until its result is delivered; damaged arrays are refused, arrays are split."""
    np.save(tmp_path / "two.npy", np.zeros((2, 2), dtype=np.float32))
    (tmp_path / "bad.npy").write_bytes(b"\x93NUMPY")
    settings = DirectorySettings(kind="directory", path=tmp_path, period_s=0.02, after="remove")
    source = DirectorySource(settings, _WANTED)
    found, thread = _collected(source)
    wait_until(lambda: len(found) == 2 and source.refused == 1, _DEADLINE_S, "both samples come")

    assert [frame.key for frame in found] == ["two.npy[0]", "two.npy[1]"]
    found[0].done()
    assert (tmp_path / "two.npy").exists()
    found[1].done()
    assert not (tmp_path / "two.npy").exists()
    source.stop()
    thread.join(_DEADLINE_S)
    with pytest.raises(Misuse, match="no folder"):
        DirectorySource(settings.model_copy(update={"path": tmp_path / "no"}), _WANTED)


def test_a_stream_gives_frames_of_its_size() -> None:
    """ffmpeg's test pattern: three frames of color, and the source ends with it."""
    if shutil.which("ffmpeg") is None:
        pytest.skip("the program ffmpeg is not installed (apt install ffmpeg)")
    settings = StreamSettings(
        kind="stream", url="testsrc=duration=1.5:rate=10", options=("-f", "lavfi"), width=64, height=48,
        frames_per_s=2, restart=False,
    )  # fmt: skip

    frames = list(StreamSource(settings).frames())

    pictures = [frame.item for frame in frames if not isinstance(frame.item, bytes)]
    assert len(frames) == 3 and all(one.shape == (48, 64, 3) and one.dtype == np.uint8 for one in pictures)
    assert all(one.std() > 20 for one in pictures)


# sinks


@dataclass
class _Taken:
    """Where a sink's documents arrive, and how it is broken."""

    sink: Sink
    documents: Callable[[], list[Any]]
    break_it: Callable[[], None]


class _ListSink:
    """A fake."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.broken = False

    def write(self, document: dict[str, Any]) -> None:
        if self.broken:
            raise Retryable("broken by the test")
        self.lines.append(json.dumps(document))

    def close(self) -> None:
        """Nothing to let go."""


class _Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server: Any = self.server
        server.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(server.status)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(params=["fake", "file", "http", "mqtt"])
def taken(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[_Taken]:
    if request.param == "fake":
        fake = _ListSink()
        yield _Taken(fake, lambda: [json.loads(line) for line in fake.lines], lambda: setattr(fake, "broken", True))
    elif request.param == "file":
        path = tmp_path / "results" / "out.jsonl"
        path.parent.mkdir()
        sink = FileSink(FileSettings(kind="file", path=path))
        read = lambda: [json.loads(line) for line in path.read_text().splitlines()]  # noqa: E731
        yield _Taken(sink, read, lambda: shutil.rmtree(path.parent))
    elif request.param == "http":
        server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Receiver)
        server.bodies, server.status = [], 204
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/in"
        yield _Taken(
            HttpSink(HttpSettings(kind="http", url=url, tries=2)),
            lambda: [json.loads(body) for body in server.bodies],
            lambda: setattr(server, "status", 503),
        )
        server.shutdown()
        server.server_close()
    else:
        with broker(tmp_path) as port:
            bus, inbox = _bus(port, "reader", ("out",))
            messages: list[Any] = []

            def read_messages() -> list[Any]:
                while not inbox.empty():
                    event = inbox.get()
                    messages.extend([json.loads(event.payload)] if isinstance(event, Message) else [])
                return messages

            published = MqttSink(MqttOutSettings(kind="mqtt", host="127.0.0.1", port=port, topic="out"), "t")
            yield _Taken(published, read_messages, published.close)
            bus.stop()


def test_results_arrive_in_order_and_a_failure_is_said(taken: _Taken, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every document that write returned for is there; when it cannot get through, write raises Retryable."""
    monkeypatch.setattr("regatta_agent.pipeline.sinks._CONNECT_S", 5.0)
    documents: list[dict[str, Any]] = [{"key": "é", "classes": []}, {"key": "b", "score": 0.5}]
    for document in documents:
        taken.sink.write(document)
    wait_until(lambda: len(taken.documents()) == 2, _DEADLINE_S, "both results arrive")

    assert taken.documents() == documents
    monkeypatch.setattr("regatta_agent.pipeline.sinks._CONNECT_S", 0.3)
    taken.break_it()
    with pytest.raises(Retryable):
        taken.sink.write({"key": "c"})
    taken.sink.close()


def test_a_file_is_turned_over_by_size(tmp_path: Path) -> None:
    """The newest lines are in the file itself, and no more than `keep` older ones stay."""
    path = tmp_path / "out.jsonl"
    sink = FileSink(FileSettings(kind="file", path=path, max_bytes=4096, keep=2))

    for number in range(400):
        sink.write({"number": number, "text": "x" * 50})

    files = [tmp_path / "out.jsonl.2", tmp_path / "out.jsonl.1", path]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert all(file.stat().st_size <= 4096 for file in files)
    numbers = [json.loads(line)["number"] for file in files for line in file.read_text().splitlines()]
    assert numbers == list(range(numbers[0], 400))
