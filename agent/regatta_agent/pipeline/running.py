"""Runs one pipeline until it is stopped or its source ends: two threads, one that reads and one that asks and tells."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from regatta_agent.asking import ask
from regatta_agent.client import Client
from regatta_agent.inputs.wanted import Wanted, wanted_by
from regatta_agent.pipeline.cameras import CameraSource
from regatta_agent.pipeline.counters import Counters, write_counters
from regatta_agent.pipeline.frames import Frame, FrameLine
from regatta_agent.pipeline.settings import (
    CameraSettings,
    DirectorySettings,
    FileSettings,
    HttpSettings,
    Pipeline,
    StreamSettings,
)
from regatta_agent.pipeline.sinks import FileSink, HttpSink, MqttSink, Sink
from regatta_agent.pipeline.sources import DirectorySource, MqttSource, Source
from regatta_agent.pipeline.streams import StreamSource
from regatta_protocol.errors import RegattaError, Rejected, Retryable

__all__ = ["Running", "open_sinks", "open_source"]

logger = logging.getLogger(__name__)

_TELL_S = 1.0
_TAKE_S = 0.5
_JOIN_S = 10.0
_RETRY_FIRST_S, _RETRY_CAP_S = 0.5, 10.0


def open_source(pipeline: Pipeline, name: str, wanted: Wanted) -> Source:
    """Return the pipeline's source; raises Misuse when it cannot work here."""
    settings = pipeline.source
    if isinstance(settings, CameraSettings):
        return CameraSource(settings)
    if isinstance(settings, StreamSettings):
        return StreamSource(settings)
    if isinstance(settings, DirectorySettings):
        return DirectorySource(settings, wanted)
    return MqttSource(settings, name)


def open_sinks(pipeline: Pipeline, name: str) -> list[Sink]:
    """Return the pipeline's sinks; raises Misuse when one cannot work here."""
    sinks: list[Sink] = []
    for place, settings in enumerate(pipeline.sinks):
        if isinstance(settings, FileSettings):
            sinks.append(FileSink(settings))
        elif isinstance(settings, HttpSettings):
            sinks.append(HttpSink(settings))
        else:
            sinks.append(MqttSink(settings, f"{name}-{place}"))
    return sinks


class Running:
    """A pipeline at work. `stop` may be called from a signal's handler or another thread."""

    def __init__(self, name: str, pipeline: Pipeline, client: Client, status_dir: Path) -> None:
        self._name = name
        self._pipeline = pipeline
        self._client = client
        self._status_dir = status_dir
        self._line = FrameLine(pipeline.queue_length, pipeline.policy)
        self._stopping = threading.Event()
        self._source: Source | None = None
        self._source_error: RegattaError | None = None
        self._counts = {"refused": 0, "failed": 0, "answered": 0, "undelivered": 0}
        self._last_error: str | None = None
        self._problem: str | None = None  # of the source, as last told
        self._started_at = time.time()

    def stop(self) -> None:
        """End soon: what waits in the line is left."""
        self._stopping.set()
        self._line.close()
        if self._source is not None:
            self._source.stop()

    def run(self) -> Counters:
        """Run to the end, and return what was counted.

        Raises:
            RegattaError: when the source or a sink cannot work.
        """
        wanted = self._patiently(lambda: wanted_by(self._client.metadata(self._pipeline.model)))
        if wanted is None:
            return self._tell()
        self._source = source = open_source(self._pipeline, self._name, wanted)
        sinks = open_sinks(self._pipeline, self._name)
        reader = threading.Thread(target=self._read, args=(source,), name="source", daemon=True)
        reader.start()
        try:
            self._work(sinks)
        finally:
            self.stop()
            reader.join(_JOIN_S)
            for sink in sinks:
                sink.close()
        if self._source_error is not None:
            raise self._source_error
        return self._tell()

    def _read(self, source: Source) -> None:
        try:
            for frame in source.frames():
                if not self._line.put(frame):
                    return
        except RegattaError as err:
            self._source_error = err
        except Exception as err:  # a library may raise anything; the service ends, and is started again
            logger.exception("event=source_failed pipeline=%s", self._name)
            self._source_error = Retryable(f"the source failed: {err}")
        finally:
            self._line.close()

    def _work(self, sinks: Sequence[Sink]) -> None:
        told_at = 0.0
        while not self._line.is_ended and not self._stopping.is_set():
            frame = self._line.take(_TAKE_S)
            if frame is not None:
                self._answer(frame, sinks)
            if time.monotonic() - told_at >= _TELL_S:
                self._tell()
                told_at = time.monotonic()

    def _answer(self, frame: Frame, sinks: Sequence[Sink]) -> None:
        """Ask about a frame and tell the sinks; whatever goes wrong is counted, and the next one comes."""
        began = time.perf_counter()
        document: dict[str, Any] = {"pipeline": self._name, "key": frame.key, "at": round(frame.at, 3)}
        try:
            reply = self._patiently(lambda: ask(self._client, self._pipeline.model, frame.item, top=self._pipeline.top))
        except Rejected as err:
            self._note("refused", f"{frame.key}: {err}")
            document["error"] = str(err)
        else:
            if reply is None:
                self._note("failed", f"{frame.key} was not answered before the end")
                return
            self._counts["answered"] += 1
            document |= {"latency_ms": round((time.perf_counter() - began) * 1000, 3), **reply.document}
        delivered = [self._deliver(sink, document) for sink in sinks]
        if all(delivered):
            frame.done()

    def _deliver(self, sink: Sink, document: dict[str, Any]) -> bool:
        try:
            sink.write(document)
        except Retryable as err:
            self._note("undelivered", str(err))
            return False
        return True

    def _patiently(self, act: Callable[[], Any]) -> Any:  # noqa: ANN401 - what `act` returns
        """Return what `act` returns, tried again while the model is away; None when stopped meanwhile.

        A pipeline outlives restarts of the agent, so it has no limit of patience; frames drop by policy meanwhile.
        """
        pause_s = _RETRY_FIRST_S
        while not self._stopping.is_set():
            try:
                return act()
            except Retryable as err:
                self._last_error = str(err)
                self._tell()
                self._stopping.wait(pause_s)
                pause_s = min(_RETRY_CAP_S, 2 * pause_s)
        return None

    def _note(self, kind: str, error: str) -> None:
        self._counts[kind] += 1
        if self._last_error != error:
            logger.warning("event=%s pipeline=%s reason=%s", kind, self._name, error)
        self._last_error = error

    def _tell_problem(self) -> str | None:
        """Return why the source gives nothing at the moment; a new reason is logged once, and so is its end."""
        problem = None if self._source is None else self._source.problem
        if problem != self._problem:
            logger.warning("event=%s pipeline=%s reason=%s", "source_back" if problem is None else "source_lost",
                           self._name, problem or "it gives frames again")  # fmt: skip
            self._problem = problem
        return problem

    def _tell(self) -> Counters:
        counts = dict(self._counts)
        counts["refused"] += 0 if self._source is None else self._source.refused
        counters = Counters(
            pipeline=self._name,
            pid=os.getpid(),
            started_at=self._started_at,
            told_at=time.time(),
            came=self._line.came,
            dropped=self._line.dropped,
            last_error=self._tell_problem() or self._last_error,
            **counts,
        )
        write_counters(self._status_dir, counters)
        return counters
