"""HTTP/1.1 on asyncio, bounded everywhere: header, body, pipeline, connections, bytes held, and every wait.

llhttp (through httptools) parses; this module knows nothing of models. A handler gets a whole `Request` and a
`respond` function that it calls once, now or later, on the loop's thread. Answers leave in the order of their requests.

Invariants:
- A connection holds at most one running request; the ones pipelined behind it wait, and reading pauses meanwhile.
- Whatever is refused before its end (too large, malformed, too slow) is answered and the connection closed, after
  what the peer still sends has been thrown away for a moment, so that the answer is not lost to a reset.
- While draining, every answer says `Connection: close`.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from http import HTTPStatus
from typing import Any, NamedTuple, cast

import httptools

from regatta_agent.serving.long_body import LONG_BYTES, LongBody
from regatta_agent.serving.spec import ServeLimits

__all__ = [
    "Connection",
    "Endpoint",
    "Handler",
    "HttpServer",
    "Request",
    "Respond",
    "Response",
    "error_response",
    "json_response",
]

logger = logging.getLogger(__name__)

_READ_BYTES = 262_144  # one buffer for all: asyncio makes one for each read, which malloc may map and unmap in 20 us
_PIPELINED = 16  # complete requests waiting on one connection; nobody here pipelines more
_LINGER_S = 2.0  # how long a refused peer may go on sending before the connection is cut
_HELD_BODIES = 8  # the server holds at most so many bodies of the greatest size
_EVICTABLE_S = 1.0  # an idle connection may be closed for a new one after so long
_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}


@dataclass(frozen=True)
class Endpoint:
    """Where connections come in, and what they must give there."""

    token: bytes | None = None  # every request needs it as `Authorization: Bearer`
    local: bool = True  # only this machine reaches it


class Request(NamedTuple):
    """A whole request. Header names are lower-case; of repeated headers the last counts."""

    method: bytes
    path: str
    headers: dict[bytes, bytes]
    body: bytes | memoryview
    local: bool = True  # it came from this machine
    timeout_us: int | None = None  # its sender waits so long, whatever its body says


class Response(NamedTuple):
    status: int
    body: bytes = b""
    content_type: bytes = b"application/json"
    headers: tuple[tuple[bytes, bytes], ...] = ()


Respond = Callable[[Response], None]
Handler = Callable[[Request, Respond], None]


def json_response(document: dict[str, Any], status: int = 200) -> Response:
    """Return `document` as a response."""
    return Response(status, json.dumps(document, separators=(",", ":")).encode())


def error_response(status: int, message: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> Response:
    """Return the protocol's error body."""
    return Response(status, json.dumps({"error": message}).encode(), headers=headers)


@dataclass
class HttpServer:
    """What the connections of one worker share."""

    handler: Handler
    limits: ServeLimits
    body_limit_bytes: int  # set again when the model is known
    connections: set[Connection] = field(default_factory=set)
    reading: memoryview = field(default_factory=lambda: memoryview(bytearray(_READ_BYTES)))  # parsed as it comes
    draining: bool = False
    last_request_at: float = 0.0  # monotonic seconds
    held_bytes: int = 0  # of bodies being received or answered

    def connection(self, endpoint: Endpoint) -> Connection:
        """Return the protocol object of a new connection, for asyncio's server."""
        return Connection(self, endpoint)

    def admit(self) -> bool:
        """Return whether one more connection may come, closing the longest idle one when there are too many."""
        if len(self.connections) < self.limits.connections:
            return True
        now = time.monotonic()
        idle = min((c for c in self.connections if c.is_idle), key=lambda c: c.since, default=None)
        if idle is None or now - idle.since < _EVICTABLE_S:
            return False
        idle.close()
        return True

    def has_room(self, size_bytes: int) -> bool:
        """Return whether so many bytes of a body may be held on top of the others."""
        return self.held_bytes + size_bytes <= _HELD_BODIES * self.body_limit_bytes

    @property
    def busy(self) -> int:
        """How many connections have a request that is not answered."""
        return sum(not connection.is_idle for connection in self.connections)

    def sweep(self) -> None:
        """Refuse or close the connections whose time is up. To be called about twice a second."""
        now = time.monotonic()
        for connection in list(self.connections):
            connection.check_time(now)

    def close_idle(self) -> None:
        """Close every connection that has nothing to answer."""
        for connection in list(self.connections):
            if connection.is_idle:
                connection.close()


class Connection(asyncio.BufferedProtocol):
    """One connection: bytes in, requests to the handler, answers out."""

    def __init__(self, server: HttpServer, endpoint: Endpoint) -> None:
        self._server = server
        self._endpoint = endpoint
        self._limits = server.limits
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[tuple[Request, bool]] = deque()
        self._running = False
        self._receiving = False  # between a request's first byte and its last
        self._in_headers = True
        self._discarding = False
        self._blocked_since: float | None = None  # the peer does not read
        self._refusal: Response | None = None
        self._header_bytes = 0
        self._unparsed_bytes = 0
        self._completed = False  # whether a request ended in the data at hand
        self._eof = False  # nothing more will be read
        self._held_bytes = 0
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._long: LongBody | None = None  # in place of `_body`
        self._body_bytes = 0
        self.since = time.monotonic()  # of the state it is in: idle, receiving or discarding

    @property
    def is_idle(self) -> bool:
        """Whether nothing is received, waiting or being answered."""
        return not (self._running or self._waiting or self._receiving)

    # asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if not self._server.admit():
            logger.warning("event=connection_refused connections=%s", len(self._server.connections))
            self._transport.write(_render(error_response(503, _TOO_MANY, _RETRY), close=True))
            self._transport.close()
            return
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._server.held_bytes -= self._held_bytes
        self._held_bytes = 0
        self._waiting.clear()
        self._receiving = False
        self._transport = None

    def eof_received(self) -> bool:
        self._eof = True
        return self._running or bool(self._waiting)  # a client may close its half and wait for the answer

    def pause_writing(self) -> None:
        self._blocked_since = time.monotonic()

    def resume_writing(self) -> None:
        self._blocked_since = None

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._server.reading

    def buffer_updated(self, nbytes: int) -> None:
        if self._discarding or self._transport is None:
            return
        if not self._receiving:
            self._receiving = True
            self.since = time.monotonic()
        self._completed = False
        try:
            self._parser.feed_data(self._server.reading[:nbytes])
        except httptools.HttpParserUpgrade:
            self._eof = True  # an upgrade may be ignored (RFC 9110, 7.8), but llhttp reads nothing after it
        except httptools.HttpParserError as err:
            if self._refusal is None:
                self._refusal = error_response(400, f"this is no HTTP/1.1 request that can be answered here: {err}")
        if self._receiving and self._in_headers and not self._completed:
            # llhttp keeps an unfinished header to itself, so what on_header counts is not all there is.
            self._unparsed_bytes += nbytes
            if self._unparsed_bytes > self._limits.header_bytes:
                self._refuse_headers()
        if self._long is not None and self._refusal is None:
            self._transport.set_protocol(self._long)
        self._next()

    def _received(self, count: int) -> None:
        """Count what came of a long body, and go on when it is whole or refused."""
        transport, long = self._transport, self._long
        if transport is None or long is None:
            return
        if not self._discarding:
            self._count_body(count)
            if self._refusal is None and not long.is_whole:
                return
        transport.set_protocol(self)
        if self._discarding or self._refusal is not None:
            self._long = None
        else:
            self.on_message_complete()
            self._parser = httptools.HttpRequestParser(self)  # the one at hand still waits for the body
        if not self._discarding:
            self._next()

    # httptools' callbacks

    def on_message_begin(self) -> None:
        self._target, self._headers, self._body, self._body_bytes = b"", {}, [], 0
        self._in_headers, self._header_bytes, self._unparsed_bytes = True, 0, 0
        if not self._receiving:  # a pipelined one
            self._receiving, self.since = True, time.monotonic()

    def on_url(self, url: bytes) -> None:
        self._target += url
        self._header_bytes += len(url)
        if self._header_bytes > self._limits.header_bytes:
            self._refuse_headers()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value) + 4
        if self._header_bytes > self._limits.header_bytes:
            self._refuse_headers()
        if self._refusal is None:
            self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self._in_headers = False
        if self._refusal is None:
            self._check_token()
        if self._refusal is not None:
            return
        length = self._headers.get(b"content-length", b"0")
        if length.isdigit():
            self._check_body(int(length))
            if int(length) > LONG_BYTES and self._refusal is None and b"transfer-encoding" not in self._headers:
                self._long = LongBody(int(length), self, self._received)
        if self._refusal is None and self._headers.get(b"expect", b"").lower() == b"100-continue":
            self._write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        if self._refusal is not None:
            return
        self._count_body(len(body))
        if self._refusal is None:
            if self._long is None:
                self._body.append(body)
            else:
                self._long.add(body)

    def on_message_complete(self) -> None:
        self._receiving, self._completed = False, True
        self._server.last_request_at = time.monotonic()
        if self._refusal is not None:
            return
        if len(self._waiting) >= _PIPELINED:
            self._refusal = error_response(400, f"more than {_PIPELINED} requests are pipelined: wait for answers")
            return
        try:
            path = _path_of(self._target)
        except (httptools.HttpParserError, UnicodeDecodeError):
            self._refusal = error_response(400, "the request's target is no path")
            return
        body: bytes | memoryview = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        if self._long is not None:
            body, self._long = self._long.buffer, None
        request = Request(self._parser.get_method(), path, self._headers, body, self._endpoint.local)
        self._waiting.append((request, self._parser.should_keep_alive()))

    # what the callbacks share

    def _count_body(self, count: int) -> None:
        """Count bytes of the body at hand, and refuse it when it gets too long."""
        self._body_bytes += count
        self._check_body(self._body_bytes)
        if self._refusal is None:
            self._held_bytes += count
            self._server.held_bytes += count

    def _refuse_headers(self) -> None:
        if self._refusal is None:
            text = f"the request's headers are over the limit of {self._limits.header_bytes} bytes"
            self._refusal = error_response(431, text)

    def _check_token(self) -> None:
        token = self._endpoint.token
        if token is None:
            return
        given = self._headers.get(b"authorization", b"")
        if not hmac.compare_digest(given, b"Bearer " + token):
            text = "give the token of this endpoint: Authorization: Bearer TOKEN"
            self._refusal = error_response(401, text, ((b"www-authenticate", b"Bearer"),))

    def _check_body(self, size: int) -> None:
        limit = self._server.body_limit_bytes
        if size > limit:
            self._refusal = error_response(
                413, f"the body of {size} bytes or more is over the limit of {limit}, which this model's inputs set"
            )
        elif not self._server.has_room(size - self._body_bytes):
            self._refusal = error_response(503, "too many bytes are being received at once: try again", _RETRY)

    def _next(self) -> None:
        """Start the next request if none runs; refuse what came when nothing is left before it."""
        transport = self._transport
        if transport is None or self._running:
            self._pause(transport)
            return
        if self._waiting:
            request, keep_alive = self._waiting.popleft()
            self._running = True
            self._server.handler(request, partial(self._answer, len(request.body), keep_alive))
        elif self._refusal is not None:
            refusal, self._refusal = self._refusal, None
            self._refuse(refusal)
        self._pause(self._transport)

    def _pause(self, transport: asyncio.Transport | None) -> None:
        if transport is None or transport.is_closing():
            return
        if self._waiting:
            transport.pause_reading()  # allowed when paused already
        else:
            transport.resume_reading()

    def _answer(self, body_bytes: int, keep_alive: bool, response: Response) -> None:
        self._running = False
        transport = self._transport
        if transport is None:
            return  # the client died in the middle, and connection_lost has counted its bytes
        self._held_bytes -= body_bytes
        self._server.held_bytes -= body_bytes
        close = not keep_alive or self._server.draining or (self._eof and not self._waiting)
        self._write(_render(response, close=close))
        if close:
            self._waiting.clear()
            self.close()
            return
        if not self._receiving:
            self.since = time.monotonic()
        if self._waiting or self._refusal is not None:
            self._next()

    def _refuse(self, response: Response) -> None:
        """Answer, then throw away what still comes for a moment, then close."""
        logger.info("event=request_refused status=%s", response.status)
        self._write(_render(response, close=True))
        self._discarding = True
        self._receiving = False
        self._waiting.clear()
        self.since = time.monotonic()
        transport = self._transport
        if transport is not None and transport.can_write_eof():
            transport.write_eof()

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        """Close after what was written has left."""
        if self._transport is not None:
            self._transport.close()

    def check_time(self, now: float) -> None:
        """Refuse or cut the connection when its time is up."""
        transport, limits, age = self._transport, self._limits, now - self.since
        if transport is None:
            return
        if self._blocked_since is not None and now - self._blocked_since > limits.write_timeout_s:
            logger.warning("event=client_does_not_read seconds=%s", limits.write_timeout_s)
            transport.abort()
        elif self._discarding:
            if age > _LINGER_S:
                transport.abort()
        elif self._receiving:
            limit = limits.header_timeout_s if self._in_headers else limits.body_timeout_s
            if age > limit and not self._running:
                self._refuse(error_response(408, f"the request was not complete after {limit:g} s"))
        elif self.is_idle and age > limits.idle_timeout_s:
            transport.close()


_TOO_MANY = "there are too many connections: close some, or keep one and send many requests over it"
_RETRY = ((b"retry-after", b"1"),)


@lru_cache(maxsize=64)  # a client asks for the same again and again; a target is as long as headers may be
def _path_of(target: bytes) -> str:
    """Return a request target's path; raises HttpParserError or UnicodeDecodeError when it has none."""
    return (httptools.parse_url(target).path or b"/").decode("ascii")


def _render(response: Response, *, close: bool) -> bytes:
    parts = [
        b"HTTP/1.1 %d %s\r\ncontent-type: %s\r\ncontent-length: %d\r\n"
        % (response.status, _REASONS.get(response.status, b""), response.content_type, len(response.body))
    ]
    parts += [b"%s: %s\r\n" % header for header in response.headers]
    parts.append(b"connection: close\r\n\r\n" if close else b"\r\n")
    parts.append(response.body)
    return b"".join(parts)
