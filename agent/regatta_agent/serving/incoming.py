"""One connection's bytes made into whole requests, each within its limits; llhttp (through httptools) parses.

What is refused (too large, malformed, without the token) is kept as a `refusal`, and nothing after it is read into a
request. Nothing is written here, and nobody waited for: http.py does both.
"""

from __future__ import annotations

import hmac
import time
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

import httptools

from regatta_agent.serving.exchange import Endpoint, Request, Response, error_response
from regatta_agent.serving.long_body import LONG_BYTES, LongBody
from regatta_agent.serving.spec import ServeLimits

__all__ = ["RETRY", "Incoming", "Room"]

RETRY = ((b"retry-after", b"1"),)
_PIPELINED = 16  # complete requests waiting on one connection; nobody here pipelines more


class Room(Protocol):
    """What the connections of a server share of its memory, and when it was last asked."""

    limits: ServeLimits
    body_limit_bytes: int
    held_bytes: int
    last_request_at: float

    def has_room(self, size_bytes: int) -> bool: ...


class Incoming:
    """httptools' protocol object: the request that is being received, and those that wait to be answered."""

    def __init__(
        self, room: Room, endpoint: Endpoint, long_body: Callable[[int], LongBody], expected: Callable[[], None]
    ) -> None:
        """Begin to read a connection.

        Args:
            room: shared with the other connections.
            endpoint: where it came in.
            long_body: makes the protocol that stands in for the connection's while so long a body comes.
            expected: called when a client waits for leave to send its body.
        """
        self.waiting: deque[tuple[Request, bool]] = deque()  # with whether the connection is kept after its answer
        self.receiving = False  # between a request's first byte and its last
        self.in_headers = True
        self.since = 0.0  # monotonic seconds, when the request at hand began
        self.refusal: Response | None = None
        self.long: LongBody | None = None  # in place of `_body`
        self._room = room
        self._limits = room.limits
        self._endpoint = endpoint
        self._long_body = long_body
        self._expected = expected
        self._parser = httptools.HttpRequestParser(self)
        self._header_bytes = 0
        self._unparsed_bytes = 0
        self._completed = False  # whether a request ended in the data at hand
        self._held_bytes = 0
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._body_bytes = 0

    def feed(self, data: memoryview) -> bool:
        """Read what came; return whether more can be read: llhttp takes nothing after a request to upgrade."""
        goes_on = True
        if not self.receiving:
            self.receiving, self.since = True, time.monotonic()
        self._completed = False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            goes_on = False  # an upgrade may be ignored (RFC 9110, 7.8)
        except httptools.HttpParserError as err:
            if self.refusal is None:
                self.refusal = error_response(400, f"this is no HTTP/1.1 request that can be answered here: {err}")
        if self.receiving and self.in_headers and not self._completed:
            # llhttp keeps an unfinished header to itself, so what on_header counts is not all there is.
            self._unparsed_bytes += len(data)
            if self._unparsed_bytes > self._limits.header_bytes:
                self._refuse_headers()
        return goes_on

    def take_long(self, count: int) -> bool:
        """Count what came of a long body; return whether that was the last of it, or it is refused."""
        assert self.long is not None
        self._count_body(count)
        if self.refusal is None and not self.long.is_whole:
            return False
        if self.refusal is None:
            self.on_message_complete()
            self._parser = httptools.HttpRequestParser(self)  # the one at hand still waits for the body
        self.long = None
        return True

    def release(self, size_bytes: int) -> None:
        """Hold so many bytes less: their request was answered."""
        self._held_bytes -= size_bytes
        self._room.held_bytes -= size_bytes

    def close(self) -> None:
        """Hold nothing more: the connection is gone."""
        self.release(self._held_bytes)
        self.waiting.clear()
        self.receiving = False

    # httptools' callbacks

    def on_message_begin(self) -> None:
        self._target, self._headers, self._body, self._body_bytes = b"", {}, [], 0
        self.in_headers, self._header_bytes, self._unparsed_bytes = True, 0, 0
        if not self.receiving:  # a pipelined one
            self.receiving, self.since = True, time.monotonic()

    def on_url(self, url: bytes) -> None:
        self._target += url
        self._header_bytes += len(url)
        if self._header_bytes > self._limits.header_bytes:
            self._refuse_headers()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value) + 4
        if self._header_bytes > self._limits.header_bytes:
            self._refuse_headers()
        if self.refusal is None:
            self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self.in_headers = False
        if self.refusal is None:
            self._check_token()
        if self.refusal is not None:
            return
        length = self._headers.get(b"content-length", b"0")
        if length.isdigit():
            self._check_body(int(length))
            if int(length) > LONG_BYTES and self.refusal is None and b"transfer-encoding" not in self._headers:
                self.long = self._long_body(int(length))
        if self.refusal is None and self._headers.get(b"expect", b"").lower() == b"100-continue":
            self._expected()

    def on_body(self, body: bytes) -> None:
        if self.refusal is not None:
            return
        self._count_body(len(body))
        if self.refusal is None:
            if self.long is None:
                self._body.append(body)
            else:
                self.long.add(body)

    def on_message_complete(self) -> None:
        self.receiving, self._completed = False, True
        self._room.last_request_at = time.monotonic()
        if self.refusal is not None:
            return
        if len(self.waiting) >= _PIPELINED:
            self.refusal = error_response(400, f"more than {_PIPELINED} requests are pipelined: wait for answers")
            return
        try:
            path = _path_of(self._target)
        except (httptools.HttpParserError, UnicodeDecodeError):
            self.refusal = error_response(400, "the request's target is no path")
            return
        body: bytes | memoryview = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        if self.long is not None:
            body, self.long = self.long.buffer, None
        request = Request(self._parser.get_method(), path, self._headers, body, self._endpoint.local)
        self.waiting.append((request, self._parser.should_keep_alive()))

    # what the callbacks share

    def _count_body(self, count: int) -> None:
        """Count bytes of the body at hand, and refuse it when it gets too long."""
        self._body_bytes += count
        self._check_body(self._body_bytes)
        if self.refusal is None:
            self._held_bytes += count
            self._room.held_bytes += count

    def _refuse_headers(self) -> None:
        if self.refusal is None:
            text = f"the request's headers are over the limit of {self._limits.header_bytes} bytes"
            self.refusal = error_response(431, text)

    def _check_token(self) -> None:
        token = self._endpoint.token
        if token is None:
            return
        given = self._headers.get(b"authorization", b"")
        if not hmac.compare_digest(given, b"Bearer " + token):
            text = "give the token of this endpoint: Authorization: Bearer TOKEN"
            self.refusal = error_response(401, text, ((b"www-authenticate", b"Bearer"),))

    def _check_body(self, size: int) -> None:
        limit = self._room.body_limit_bytes
        if size > limit:
            self.refusal = error_response(
                413, f"the body of {size} bytes or more is over the limit of {limit}, which this model's inputs set"
            )
        elif not self._room.has_room(size - self._body_bytes):
            self.refusal = error_response(503, "too many bytes are being received at once: try again", RETRY)


@lru_cache(maxsize=64)  # a client asks for the same again and again; a target is as long as headers may be
def _path_of(target: bytes) -> str:
    """Return a request target's path; raises HttpParserError or UnicodeDecodeError when it has none."""
    return (httptools.parse_url(target).path or b"/").decode("ascii")
