"""The client's side of HTTP/1.1: one kept connection, one bounded request and answer at a time. Standard library only.

Written by hand, because Python's http.client costs as much again as the whole transport (serving.md). The path of a
unix socket may be a symlink that is pointed elsewhere when a version is swapped; it is resolved at each connecting.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from regatta_agent.serving.spec import check_socket_path
from regatta_protocol.errors import Misuse, Retryable, TooLarge

__all__ = ["ADVICE", "Answer", "Caller", "ClosedBeforeAnswer"]

_MAX_HEADER_BYTES = 16_384
_MAX_BODY_BYTES = 256 * 1024 * 1024  # of an answer; a segmentation map of 4096 x 4096 classes fits
_RECEIVE_BYTES = 262_144
ADVICE = "see `regatta-agent status`, and start the agent with `regatta-agent run` if it does not run"


class ClosedBeforeAnswer(Exception):
    """The connection could not be made or ended before a whole answer: the same request may be sent again."""


@dataclass(frozen=True)
class Answer:
    """Header names are lower-case."""

    status: int
    headers: dict[bytes, bytes]
    body: memoryview


class Caller:
    """A connection that is opened when first needed, and again after it was closed."""

    def __init__(self, target: str, timeout_s: float) -> None:
        """Keep the target, connecting nowhere.

        Raises:
            Misuse: when it is neither a path nor `http://HOST:PORT`, or the path is too long for a socket.
        """
        self._target = target
        self._path, self._host, self._port = _parse_target(target)
        self._timeout_s = timeout_s
        self._socket: socket.socket | None = None

    @property
    def is_open(self) -> bool:
        """Whether the connection of the last exchange is kept."""
        return self._socket is not None

    def close(self) -> None:
        """Close the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def exchange(self, method: str, path: str, body: bytes, header_length: int | None = None) -> Answer:
        """Send one request and return its answer, within the timeout.

        Args:
            method: of HTTP.
            path: the request's target.
            body: may be empty.
            header_length: the value of Inference-Header-Content-Length, or None without the header.

        Raises:
            ClosedBeforeAnswer: when the connection ended before a whole answer.
            Retryable: when there is no socket, or no answer in time.
            TooLarge: when the answer is over its limits.
        """
        head = f"{method} {path} HTTP/1.1\r\nhost: {self._host or 'localhost'}\r\ncontent-length: {len(body)}\r\n"
        if header_length is not None:
            head += f"inference-header-content-length: {header_length}\r\ncontent-type: application/octet-stream\r\n"
        deadline = time.monotonic() + self._timeout_s
        connection = self._connected()
        try:
            connection.settimeout(self._timeout_s)
            # A worker that refuses early (413) answers and stops reading, so the answer is looked for all the same.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(b"".join((head.encode(), b"\r\n", body)))
            answer = self._receive(connection, deadline)
        except TimeoutError as err:
            self.close()
            raise Retryable(f"{self._target} did not answer within {self._timeout_s:g} s: {ADVICE}") from err
        except BaseException:
            self.close()  # what is left on it belongs to nobody
            raise
        if answer.headers.get(b"connection", b"").lower() == b"close":
            self.close()
        return answer

    def _connected(self) -> socket.socket:
        if self._socket is not None:
            return self._socket
        try:
            if self._path is None:
                connection = socket.create_connection((self._host, self._port), self._timeout_s)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            else:
                connection = _connect_unix(self._path, self._timeout_s)
        except FileNotFoundError as err:
            if os.path.lexists(self._path or ""):  # a symlink whose worker has just gone; its agent starts another
                raise ClosedBeforeAnswer(f"{self._target} points to a socket that is gone") from err
            raise Retryable(_absent(self._target)) from err
        except PermissionError as err:
            raise Misuse(f"{self._target} may not be opened: join the group of the agent's run folder") from err
        except (ConnectionRefusedError, BlockingIOError) as err:
            raise ClosedBeforeAnswer(f"nobody accepts connections at {self._target}") from err
        except OSError as err:
            raise Retryable(f"{self._target} cannot be reached: {err}: {ADVICE}") from err
        self._socket = connection
        return connection

    def _receive(self, connection: socket.socket, deadline: float) -> Answer:
        data = bytearray()
        while (end := data.find(b"\r\n\r\n")) < 0:
            if len(data) > _MAX_HEADER_BYTES:
                raise TooLarge(f"the answer of {self._target} has headers over {_MAX_HEADER_BYTES} bytes")
            piece = _receive_piece(connection, deadline)
            if not piece and data:
                raise ClosedBeforeAnswer(f"{self._target} closed the connection within an answer")
            if not piece:
                raise ClosedBeforeAnswer(f"{self._target} closed the connection before an answer")
            data += piece
        status, headers = _parse_head(bytes(data[:end]))
        size = _length(headers)
        rest = memoryview(data)[end + 4 :]
        if len(rest) > size:
            raise Retryable(f"the answer of {self._target} is longer than it says")
        if len(rest) == size:
            return Answer(status, headers, rest)
        body = memoryview(bytearray(size))
        have = len(rest)
        body[:have] = rest
        while have < size:
            connection.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                count = connection.recv_into(body[have:])
            except ConnectionResetError:
                count = 0
            if count == 0:
                raise ClosedBeforeAnswer(f"{self._target} closed the connection within an answer")
            have += count
        return Answer(status, headers, body)


def _connect_unix(path: str, timeout_s: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.settimeout(timeout_s)
        connection.connect(path)
    except BaseException:
        connection.close()
        raise
    return connection


def _receive_piece(connection: socket.socket, deadline: float) -> bytes:
    connection.settimeout(max(0.001, deadline - time.monotonic()))
    try:
        return connection.recv(_RECEIVE_BYTES)
    except ConnectionResetError:
        return b""


def _absent(target: str) -> str:
    folder = Path(target.removeprefix("unix:")).parent
    with contextlib.suppress(OSError):
        served = sorted(path.stem for path in folder.glob("*.sock") if path.is_symlink())
        if served:
            return f"{target} is not there; served in {folder}: {', '.join(served[:20])}"
    return f"{target} is not there: {ADVICE}"


def _parse_target(target: str) -> tuple[str | None, str, int]:
    if target.startswith("http://"):
        parts = urlsplit(target)
        try:
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if not host or port is None or parts.path not in ("", "/"):
            raise Misuse(f"{target!r} is no target: write http://HOST:PORT")
        return None, host, port
    if "://" in target:
        raise Misuse(f"{target!r} is no target: write a socket's path or http://HOST:PORT")
    path = target.removeprefix("unix:")
    check_socket_path(Path(path))
    return path, "", 0


def _parse_head(head: bytes) -> tuple[int, dict[bytes, bytes]]:
    first, *lines = head.split(b"\r\n")
    parts = first.split(b" ", 2)
    if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit():
        raise Retryable(f"this is no HTTP answer: {first[:80]!r}")
    headers = {}
    for line in lines:
        name, _, value = line.partition(b":")
        headers[name.strip().lower()] = value.strip()
    return int(parts[1]), headers


def _length(headers: dict[bytes, bytes]) -> int:
    text = headers.get(b"content-length", b"")
    if not text.isdigit() or len(text) > 12:
        raise Retryable("the answer has no valid content-length")
    if int(text) > _MAX_BODY_BYTES:
        raise TooLarge(f"the answer has {int(text)} bytes, over the limit of {_MAX_BODY_BYTES}")
    return int(text)
