"""The client's side of HTTP/1.1: one kept connection, one bounded request and answer at a time. Standard library only.

Written by hand, because Python's http.client costs as much again as the whole transport (serving.md). The path of a
unix socket may be a symlink that is pointed elsewhere when a version is swapped; it is resolved at each connecting.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from regatta_agent.serving.socketpath import check_socket_path
from regatta_protocol.errors import Misuse, Retryable, TooLarge

__all__ = [
    "ADVICE",
    "MAX_HEADER_BYTES",
    "Answer",
    "Call",
    "Caller",
    "ClosedBeforeAnswer",
    "Target",
    "absent",
    "body_length",
    "not_connected",
    "parse_head",
    "parse_target",
]

MAX_HEADER_BYTES = 16_384
_MAX_BODY_BYTES = 256 * 1024 * 1024  # of an answer; a segmentation map of 4096 x 4096 classes fits
_RECEIVE_BYTES = 65_536
_JOINED_BYTES = 65_536  # shorter requests are copied into one piece, longer ones sent from where they lie
_SENT_AHEAD_BYTES = (
    212_992  # twice what a unix socket holds unasked, for the kernel doubles it: fewer wake-ups of both sides
)
ADVICE = "see `regatta-agent status`, and start the agent with `regatta-agent run` if it does not run"


class ClosedBeforeAnswer(Exception):
    """The connection could not be made or ended before a whole answer: the same request may be sent again."""


class Answer(NamedTuple):
    """Header names are lower-case. Made for each request, as a Call is, and so a tuple."""

    status: int
    headers: Mapping[bytes, bytes]
    body: memoryview


class Call(NamedTuple):
    """One request: `body` and then `tail`, which is sent from where it lies.

    `header_length` is the value of Inference-Header-Content-Length; None: without the header. A `mirrored` request is
    one that another worker has answered: it is counted nowhere.
    """

    method: str
    path: str
    body: bytes | memoryview = b""
    tail: Sequence[bytes | memoryview] = ()
    header_length: int | None = None
    mirrored: bool = False

    def head(self, target: Target) -> bytes:
        """Return the request line and headers."""
        size = len(self.body) + sum(map(len, self.tail))
        return _head(self.method, self.path, target.host, target.token, size, self.header_length, self.mirrored)


@dataclass(frozen=True)
class Target:
    """Where a worker listens: a socket's path, or host and port; beyond loopback with TLS and a token."""

    text: str
    path: str | None
    host: str
    port: int
    tls: ssl.SSLContext | None = None
    token: str | None = field(default=None, repr=False)


class Caller:
    """A connection that is opened when first needed, and again after it was closed."""

    def __init__(self, target: Target, timeout_s: float) -> None:
        """Keep the target, connecting nowhere."""
        self._target = target
        self._timeout_s = timeout_s
        self._socket: socket.socket | None = None
        self._buffer = memoryview(bytearray(_RECEIVE_BYTES))

    @property
    def is_open(self) -> bool:
        """Whether the connection of the last exchange is kept."""
        return self._socket is not None

    def close(self) -> None:
        """Close the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def exchange(self, call: Call) -> Answer:
        """Send one request and return its answer, within the timeout.

        Raises:
            ClosedBeforeAnswer: when the connection ended before a whole answer.
            Retryable: when there is no socket, or no answer in time.
            TooLarge: when the answer is over its limits.
        """
        deadline = time.monotonic() + self._timeout_s
        connection = self._connected()
        try:
            _limit(connection, self._timeout_s)
            # A worker that refuses early (413) answers and stops reading, so the answer is looked for all the same.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                _send(connection, [call.head(self._target), call.body, *call.tail], deadline)
            answer = self._receive(connection, deadline)
        except TimeoutError as err:
            self.close()
            raise Retryable(f"{self._target.text} did not answer within {self._timeout_s:g} s: {ADVICE}") from err
        except BaseException:
            self.close()  # what is left on it belongs to nobody
            raise
        if answer.headers.get(b"connection", b"").lower() == b"close":
            self.close()
        return answer

    def _connected(self) -> socket.socket:
        if self._socket is not None:
            return self._socket
        target = self._target
        try:
            if target.path is None:
                connection = socket.create_connection((target.host, target.port), self._timeout_s)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if target.tls is not None:
                    connection = _wrapped(connection, target.tls, target.host)
            else:
                connection = _connect_unix(target.path, self._timeout_s)
        except OSError as err:
            raise not_connected(target, err) from err
        self._socket = connection
        return connection

    def _receive(self, connection: socket.socket, deadline: float) -> Answer:
        have, end = 0, -1
        while end < 0:
            if have > MAX_HEADER_BYTES:
                raise TooLarge(f"the answer of {self._target.text} has headers over {MAX_HEADER_BYTES} bytes")
            if have:
                _limit(connection, deadline - time.monotonic())
            count = _receive_into(connection, self._buffer[have:])
            if count == 0:
                where = "within" if have else "before"
                raise ClosedBeforeAnswer(f"{self._target.text} closed the connection {where} an answer")
            have += count
            end = bytes(self._buffer[: min(have, MAX_HEADER_BYTES)]).find(b"\r\n\r\n")
        status, headers = parse_head(bytes(self._buffer[:end]))
        size = body_length(headers)
        begun = have - end - 4
        if begun > size:
            raise Retryable(f"the answer of {self._target.text} is longer than it says")
        body = memoryview(bytearray(size))  # its own, for arrays of the answer lie in it
        body[:begun] = self._buffer[end + 4 : have]
        while begun < size:
            _limit(connection, deadline - time.monotonic())
            count = _receive_into(connection, body[begun:])
            if count == 0:
                raise ClosedBeforeAnswer(f"{self._target.text} closed the connection within an answer")
            begun += count
        return Answer(status, headers, body)


def not_connected(target: Target, err: OSError) -> Exception:
    """Return what it means that connecting failed: ClosedBeforeAnswer where a new worker may come soon."""
    if isinstance(err, ssl.SSLCertVerificationError):
        return Misuse(f"the certificate of {target.text} is not one to trust: {err.verify_message}: give its ca")
    if isinstance(err, FileNotFoundError):
        if os.path.lexists(target.path or ""):  # a symlink whose worker has just gone; its agent starts another
            return ClosedBeforeAnswer(f"{target.text} points to a socket that is gone")
        return Retryable(absent(target.text))
    if isinstance(err, PermissionError):
        return Misuse(f"{target.text} may not be opened: join the group of the agent's run folder")
    if isinstance(err, (ConnectionRefusedError, BlockingIOError)):
        return ClosedBeforeAnswer(f"nobody accepts connections at {target.text}")
    return Retryable(f"{target.text} cannot be reached: {err}: {ADVICE}")


def _send(connection: socket.socket, parts: Sequence[bytes | memoryview], deadline: float) -> None:
    """Send every part, the long ones from where they lie."""
    if sum(len(part) for part in parts) <= _JOINED_BYTES or isinstance(connection, ssl.SSLSocket):
        connection.sendall(b"".join(parts))
        return
    left = [memoryview(part) for part in parts if len(part)]
    while left:
        _limit(connection, deadline - time.monotonic())
        sent = connection.sendmsg(left)
        while left and sent >= len(left[0]):
            sent -= len(left.pop(0))
        if sent:
            left[0] = left[0][sent:]


def _wrapped(connection: socket.socket, tls: ssl.SSLContext, host: str) -> socket.socket:
    try:
        return tls.wrap_socket(connection, server_hostname=host)
    except BaseException:
        connection.close()
        raise


def _connect_unix(path: str, timeout_s: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.settimeout(timeout_s)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SENT_AHEAD_BYTES)
        connection.connect(path)
    except BaseException:
        connection.close()
        raise
    return connection


def _limit(connection: socket.socket, timeout_s: float) -> None:
    """Let the next call take so long; a system call, which most exchanges need not make."""
    if connection.gettimeout() != timeout_s:
        connection.settimeout(max(0.001, timeout_s))


def _receive_into(connection: socket.socket, buffer: memoryview) -> int:
    """Return how many bytes came; 0 when the connection ended."""
    try:
        return connection.recv_into(buffer)
    except ConnectionResetError:
        return 0


def absent(target: str) -> str:
    """Return what to say of a socket that is not there, with those that are."""
    folder = Path(target.removeprefix("unix:")).parent
    with contextlib.suppress(OSError):
        served = sorted(path.stem for path in folder.glob("*.sock") if path.is_symlink())
        if served:
            return f"{target} is not there; served in {folder}: {', '.join(served[:20])}"
    return f"{target} is not there: {ADVICE}"


def parse_target(target: str, *, token: str | None = None, ca: str | None = None) -> Target:
    """Return where `target` leads.

    Args:
        target: a socket's path, `unix:PATH`, `http://HOST:PORT` or `https://HOST:PORT`.
        token: what the worker asks for beyond loopback; sent only to a socket of this machine or over TLS.
        ca: a PEM file of who signs the worker's certificate; None: those that this system trusts.

    Raises:
        Misuse: when it is none of these, the path is too long for a socket, or the token would be sent in the clear.
    """
    if target.startswith(("http://", "https://")):
        parts = urlsplit(target)
        try:
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if not host or port is None or parts.path not in ("", "/"):
            raise Misuse(f"{target!r} is no target: write http://HOST:PORT or https://HOST:PORT")
        if parts.scheme == "http" and token is not None:
            raise Misuse(f"the token would go to {target} in the clear: write https://HOST:PORT")
        return Target(target, None, host, port, _tls(ca) if parts.scheme == "https" else None, token)
    if "://" in target:
        raise Misuse(f"{target!r} is no target: write a socket's path, http://HOST:PORT or https://HOST:PORT")
    path = target.removeprefix("unix:")
    check_socket_path(Path(path))
    return Target(target, path, "", 0)


def _tls(ca: str | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca)
    except OSError as err:
        raise Misuse(f"the certificates in {ca} cannot be read: {err}") from err
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


@lru_cache(maxsize=16)  # requests that are alike have one head, and so have their answers
def _head(
    method: str, path: str, host: str, token: str | None, size: int, header_length: int | None, mirrored: bool
) -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nhost: {host or 'localhost'}\r\ncontent-length: {size}\r\n"
    if header_length is not None:
        head += f"inference-header-content-length: {header_length}\r\n"
        head += "content-type: application/octet-stream\r\n"
    if mirrored:
        head += "regatta-mirrored: 1\r\n"
    if token is not None:
        head += f"authorization: Bearer {token}\r\n"
    return f"{head}\r\n".encode()


@lru_cache(maxsize=16)
def parse_head(head: bytes) -> tuple[int, Mapping[bytes, bytes]]:
    """Return the status and the headers of an answer.

    Raises:
        Retryable: when it is no HTTP answer.
    """
    first, *lines = head.split(b"\r\n")
    parts = first.split(b" ", 2)
    if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit():
        raise Retryable(f"this is no HTTP answer: {first[:80]!r}")
    headers = {}
    for line in lines:
        name, _, value = line.partition(b":")
        headers[name.strip().lower()] = value.strip()
    return int(parts[1]), headers


def body_length(headers: Mapping[bytes, bytes]) -> int:
    """Return how long the body is.

    Raises:
        Retryable: when the headers do not say.
        TooLarge: when it is over the limit.
    """
    text = headers.get(b"content-length", b"")
    if not text.isdigit() or len(text) > 12:
        raise Retryable("the answer has no valid content-length")
    if int(text) > _MAX_BODY_BYTES:
        raise TooLarge(f"the answer has {int(text)} bytes, over the limit of {_MAX_BODY_BYTES}")
    return int(text)
