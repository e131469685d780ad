"""Where results go: a topic, a URL, a file. A sink raises Retryable when a result did not get through, and lives on."""

from __future__ import annotations

import json
import queue
import random
import threading
import time
from pathlib import Path
from typing import Any, Protocol

import requests

from regatta_agent.pipeline.brokers import bus_of, read_secret
from regatta_agent.pipeline.settings import FileSettings, HttpSettings, MqttOutSettings
from regatta_protocol.bus import Event, Published
from regatta_protocol.errors import Retryable

__all__ = ["FileSink", "HttpSink", "MqttSink", "Sink"]

_RETRY_FIRST_S, _RETRY_CAP_S = 0.1, 2.0
_INBOX = 64
_CONNECT_S = 10.0
_ACK_S = 5.0


class Sink(Protocol):
    """What takes results."""

    def write(self, document: dict[str, Any]) -> None:
        """Hand the result over.

        Raises:
            Retryable: when it did not get through.
        """

    def close(self) -> None:
        """Let go of files and connections."""


class MqttSink:
    """Publishes results; with QoS 1 each is acknowledged by the broker before it counts."""

    def __init__(self, settings: MqttOutSettings, name: str) -> None:
        """Begin connecting.

        Raises:
            Misuse: when a certificate or the password's file cannot be read.
        """
        self._settings = settings
        self._inbox: queue.Queue[Event] = queue.Queue(_INBOX)
        self._bus = bus_of(settings, f"{name}-out", self._inbox, ())
        self._bus.start()

    def write(self, document: dict[str, Any]) -> None:
        settings, payload = self._settings, _line(document)
        deadline = time.monotonic() + _CONNECT_S
        while True:
            try:
                token = self._bus.publish(settings.topic, payload, qos=settings.qos, retain=settings.retain)
                break
            except Retryable:  # not connected (yet)
                if time.monotonic() > deadline:
                    raise
                self._drain(_RETRY_FIRST_S)
        if settings.qos == 1:
            self._wait_for(token)

    def _drain(self, timeout_s: float) -> Event | None:
        try:
            return self._inbox.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def _wait_for(self, token: int) -> None:
        deadline = time.monotonic() + _ACK_S
        while (left_s := deadline - time.monotonic()) > 0:
            event = self._drain(left_s)
            if isinstance(event, Published) and event.token == token:
                return
        raise Retryable(f"the broker {self._settings.host} did not acknowledge a result within {_ACK_S:g} s")

    def close(self) -> None:
        self._bus.stop()


class HttpSink:
    """Posts results as JSON."""

    def __init__(self, settings: HttpSettings) -> None:
        """Keep the URL.

        Raises:
            Misuse: when the token's file cannot be read.
        """
        self._settings = settings
        self._session = requests.Session()
        if settings.token_file is not None:
            self._session.headers["Authorization"] = f"Bearer {read_secret(settings.token_file)}"
        self._closing = threading.Event()

    def write(self, document: dict[str, Any]) -> None:
        settings, problem = self._settings, ""
        for attempt in range(settings.tries):
            if attempt:
                limit_s = min(_RETRY_CAP_S, _RETRY_FIRST_S * 2**attempt)
                self._closing.wait(random.uniform(0, limit_s))  # noqa: S311 - jitter
            try:
                answer = self._session.post(
                    settings.url,
                    data=_line(document),
                    headers={"Content-Type": "application/json"},
                    timeout=settings.timeout_s,
                    allow_redirects=False,
                )
            except requests.RequestException as err:
                problem = str(err)
                continue
            if answer.status_code < 300:
                return
            problem = f"status {answer.status_code}"
            if answer.status_code < 500 and answer.status_code != 429:
                break
        raise Retryable(f"{settings.url} did not take a result: {problem[:300]}")

    def close(self) -> None:
        self._closing.set()
        self._session.close()


class FileSink:
    """Appends results to a file that is turned over by size. Lines are flushed, not synced: a card wears out."""

    def __init__(self, settings: FileSettings) -> None:
        self._settings = settings

    def write(self, document: dict[str, Any]) -> None:
        line, path = _line(document) + b"\n", self._settings.path
        try:
            if path.exists() and path.stat().st_size + len(line) > self._settings.max_bytes:
                self._turn_over(path)
            with path.open("ab") as stream:
                stream.write(line)
        except OSError as err:
            raise Retryable(f"{path} cannot be written: {err.strerror}") from err

    def _turn_over(self, path: Path) -> None:
        if self._settings.keep == 0:
            path.unlink()
            return
        for number in range(self._settings.keep - 1, 0, -1):
            older = _numbered(path, number)
            if older.exists():
                older.replace(_numbered(path, number + 1))
        path.replace(_numbered(path, 1))

    def close(self) -> None:
        """Nothing is held open."""


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def _line(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
