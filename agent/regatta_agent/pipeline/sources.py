"""Where frames come from: a folder's new files, messages of a topic (cameras.py and streams.py have the others).

A source is iterated by a thread of its own until it ends, or `stop` was called from another. It raises RegattaError
when it can never work; what may come back (a broker, a camera) it waits for, with a cap.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Protocol

from regatta_agent.inputs.records import read_item
from regatta_agent.inputs.tables import NPY_MAGIC, npy_rows
from regatta_agent.inputs.wanted import Wanted
from regatta_agent.pipeline.brokers import bus_of
from regatta_agent.pipeline.frames import Frame
from regatta_agent.pipeline.settings import DirectorySettings, MqttInSettings
from regatta_protocol.bus import Connected, Disconnected, Event, Message
from regatta_protocol.errors import Misuse, Rejected

__all__ = ["DirectorySource", "MqttSource", "Source"]

_POLL_S = 0.2
_INBOX = 64


class Source(Protocol):
    """What gives frames."""

    refused: int  # things that came and are no frames
    problem: str | None  # why nothing comes at the moment; what may come back is waited for

    def frames(self) -> Iterator[Frame]:
        """Yield frames as they come, until stopped or at the end."""

    def stop(self) -> None:
        """Let `frames` end soon. Any thread may call it, more than once."""


class DirectorySource:
    """New files of a folder, oldest name first, each when it did not change between two looks."""

    def __init__(self, settings: DirectorySettings, wanted: Wanted) -> None:
        """Keep the folder.

        Raises:
            Misuse: when there is none.
        """
        if not settings.path.is_dir():
            raise Misuse(f"{settings.path} is no folder to watch: make it first")
        self._settings = settings
        self._wanted = wanted
        self._stopping = threading.Event()
        self.refused = 0
        self.problem: str | None = None

    def stop(self) -> None:
        self._stopping.set()

    def frames(self) -> Iterator[Frame]:
        done: dict[Path, tuple[int, int]] = {} if self._settings.existing else self._look()
        before: dict[Path, tuple[int, int]] = dict(done)
        while not self._stopping.is_set():
            now = self._look()
            settled = [path for path, sign in sorted(now.items()) if before.get(path) == sign != done.get(path)]
            for path in settled:
                done[path] = now[path]
                yield from self._frames_of(path)
                if self._stopping.is_set():
                    return
            done = {path: sign for path, sign in done.items() if path in now}
            before = now
            self._stopping.wait(self._settings.period_s)

    def _look(self) -> dict[Path, tuple[int, int]]:
        """Return each file with what changes when it is written."""
        self.problem = None if self._settings.path.is_dir() else f"{self._settings.path} is gone: make it again"
        found = {}
        for path in self._settings.path.glob(self._settings.pattern):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                if path.is_file() and not path.name.startswith("."):
                    found[path] = (status.st_mtime_ns, status.st_size)
        return found

    def _frames_of(self, path: Path) -> Iterator[Frame]:
        """Yield the frame of a file, or those of the samples in it; the file may go when the last one is done."""
        remove = partial(path.unlink, missing_ok=True) if self._settings.after == "remove" else _nothing
        try:
            data = read_item(path)
            if not data.startswith(NPY_MAGIC):
                yield Frame(path.name, data, time.time(), remove)
                return
            rows = npy_rows(data, path.name, self._wanted)
            for place, row in enumerate(rows):
                key = path.name if len(rows) == 1 else f"{path.name}[{place}]"
                yield Frame(key, row, time.time(), remove if place == len(rows) - 1 else _nothing)
        except Rejected:
            self.refused += 1


def _nothing() -> None:
    return


class MqttSource:
    """Messages of a topic."""

    def __init__(self, settings: MqttInSettings, name: str) -> None:
        self._settings = settings
        self._name = name
        self._stopping = threading.Event()
        self.refused = 0
        self.problem: str | None = None

    def stop(self) -> None:
        self._stopping.set()

    def frames(self) -> Iterator[Frame]:
        inbox: queue.Queue[Event] = queue.Queue(_INBOX)
        bus = bus_of(self._settings, f"{self._name}-in", inbox, (self._settings.topic,))
        bus.start()
        try:
            while not self._stopping.is_set():
                try:
                    event = inbox.get(timeout=_POLL_S)
                except queue.Empty:
                    continue
                if isinstance(event, Connected | Disconnected):
                    self.problem = self._lost(event)
                elif isinstance(event, Message) and event.payload:
                    yield Frame(event.topic, event.payload, time.time())
                elif isinstance(event, Message):
                    self.refused += 1
        finally:
            bus.stop()

    def _lost(self, event: Connected | Disconnected) -> str | None:
        if isinstance(event, Connected):
            return None
        return f"the broker {self._settings.host}:{self._settings.port} is not there: {event.reason}"
