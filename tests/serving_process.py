"""A real serving worker for tests: its own process, spoken to over its socket, ended by closing its input."""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from regatta_agent.serving.events import Failed, Ready, WindowClosed, WorkerEvent, parse_event
from regatta_agent.serving.spec import ServeLimits, ServeSpec
from regatta_protocol.ids import ModelName
from regatta_protocol.plain import to_json
from tiny_models import write_tiny_model

START_TIMEOUT_S = 60.0
QUICK = ServeLimits(drain_quiet_s=0.1)


def tiny_spec(folder: Path, version: int = 1, **more: Any) -> ServeSpec:
    """Return the spec of a worker for the tiny model in `folder`, which is made there; its socket is N.sock."""
    model = folder / "tiny.tflite"
    if not model.exists():
        write_tiny_model(model)
    values: dict[str, Any] = {
        "model": ModelName("tiny"),
        "version": version,
        "candidate_id": "litert/float32/xnnpack/t1",
        "variant_path": model,
        "socket_path": folder / f"{version}.sock",
        "limits": QUICK,
        **more,
    }
    return ServeSpec(**values)


class ServingProcess:
    """A worker process and what it says."""

    def __init__(
        self,
        spec: ServeSpec,
        folder: Path,
        program: Sequence[str] = ("-m", "regatta_agent.serving"),
        pass_fds: Sequence[int] = (),
        options: Sequence[str] = (),
    ) -> None:
        self.spec = spec
        path = folder / f"spec-{spec.model}-{spec.version}.json"
        path.write_bytes(to_json(spec))
        self.process = subprocess.Popen(
            [sys.executable, *program, str(path), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=pass_fds,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        self._events: queue.SimpleQueue[WorkerEvent | None] = queue.SimpleQueue()
        self.stderr = b""
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._read_events, self._read_log)]
        for thread in self._threads:
            thread.start()

    def _read_events(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._events.put(parse_event(line))
        self._events.put(None)

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        self.stderr = self.process.stderr.read()

    def next_event(self, timeout_s: float = START_TIMEOUT_S) -> WorkerEvent | None:
        """Return the next event, or None when the worker said its last."""
        return self._events.get(timeout=timeout_s)

    def ready(self) -> Ready:
        """Return the worker's first event, which must be that it is ready."""
        event = self.next_event()
        assert isinstance(event, Ready), f"{event}\n{self.stderr.decode()}"
        return event

    def failed(self) -> Failed:
        """Return the worker's first event, which must be that it failed."""
        event = self.next_event()
        assert isinstance(event, Failed), f"{event}\n{self.stderr.decode()}"
        return event

    def drain(self) -> list[WindowClosed]:
        """Close the worker's input and return the windows it has told by its end, which must be clean."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        windows: list[WindowClosed] = []
        while (event := self.next_event()) is not None:
            assert isinstance(event, WindowClosed), event
            windows.append(event)
        assert self.process.wait(START_TIMEOUT_S) == 0, self.stderr.decode()
        return windows

    def kill(self) -> None:
        """End the process whatever it does."""
        self.process.kill()
        self.process.wait()
        for thread in self._threads:
            thread.join(5.0)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


@contextlib.contextmanager
def serving(spec: ServeSpec, folder: Path, pass_fds: Sequence[int] = ()) -> Iterator[ServingProcess]:
    """Run a worker that is ready, and end it."""
    worker = ServingProcess(spec, folder, pass_fds=pass_fds)
    try:
        worker.ready()
        yield worker
    finally:
        worker.kill()


def raw_exchange(path: Path, data: bytes, timeout_s: float = 10.0) -> bytes:
    """Send bytes over a fresh connection, and return all that comes until the worker closes or one answer is whole."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        connection.connect(str(path))
        with contextlib.suppress(BrokenPipeError):
            connection.sendall(data)
        return receive_answer(connection)


def receive_answer(connection: socket.socket) -> bytes:
    """Return one whole answer, or what came until the end."""
    data = b""
    while not _is_whole(data):
        piece = connection.recv(65_536)
        if not piece:
            break
        data += piece
    return data


def _is_whole(data: bytes) -> bool:
    head, separator, body = data.partition(b"\r\n\r\n")
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return bool(separator) and len(body) >= int(value)
    return False


def post(path: str, body: bytes, **headers: Any) -> bytes:
    """Return a POST request; header names are given with underscores."""
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    head = [f"POST {path} HTTP/1.1", "host: x", f"content-length: {len(body)}", *lines]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def status_of(answer: bytes) -> int:
    """Return the status code of an answer."""
    return int(answer.split(b" ", 2)[1])
