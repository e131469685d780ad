"""HTTP/1.1 on asyncio, bounded everywhere: header, body, pipeline, connections, bytes held, and every wait.

incoming.py makes requests of what comes; this module knows nothing of models. A handler gets a whole `Request` and a
`respond` function that it calls once, now or later, on the loop's thread. Answers leave in the order of their requests.

Invariants:
- A connection holds at most one running request; the ones pipelined behind it wait, and reading pauses meanwhile.
- Whatever is refused before its end (too large, malformed, too slow) is answered and the connection closed, after
  what the peer still sends has been thrown away for a moment, so that the answer is not lost to a reset.
- While draining, every answer says `Connection: close`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from functools import partial
from typing import cast

from regatta_agent.serving.exchange import Endpoint, Handler, Response, error_response, rendered
from regatta_agent.serving.incoming import RETRY, Incoming
from regatta_agent.serving.long_body import LongBody
from regatta_agent.serving.spec import ServeLimits

__all__ = ["Connection", "HttpServer"]

logger = logging.getLogger(__name__)

_READ_BYTES = 262_144  # one buffer for all: asyncio makes one for each read, which malloc may map and unmap in 20 us
_LINGER_S = 2.0  # how long a refused peer may go on sending before the connection is cut
_HELD_BODIES = 8  # the server holds at most so many bodies of the greatest size
_EVICTABLE_S = 1.0  # an idle connection may be closed for a new one after so long
_TOO_MANY = "there are too many connections: close some, or keep one and send many requests over it"


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
        self._limits = server.limits
        self._transport: asyncio.Transport | None = None
        self._incoming = Incoming(server, endpoint, self._long_body, self._say_continue)
        self._running = False
        self._discarding = False
        self._blocked_since: float | None = None  # the peer does not read
        self._eof = False  # nothing more will be read
        self.since = time.monotonic()  # when it became idle, or began to discard

    @property
    def is_idle(self) -> bool:
        """Whether nothing is received, waiting or being answered."""
        return not (self._running or self._incoming.waiting or self._incoming.receiving)

    # asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if not self._server.admit():
            logger.warning("event=connection_refused connections=%s", len(self._server.connections))
            self._transport.write(rendered(error_response(503, _TOO_MANY, RETRY), close=True))
            self._transport.close()
            return
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._incoming.close()
        self._transport = None

    def eof_received(self) -> bool:
        self._eof = True
        return self._running or bool(self._incoming.waiting)  # a client may close its half and wait for the answer

    def pause_writing(self) -> None:
        self._blocked_since = time.monotonic()

    def resume_writing(self) -> None:
        self._blocked_since = None

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._server.reading

    def buffer_updated(self, nbytes: int) -> None:
        if self._discarding or self._transport is None:
            return
        incoming = self._incoming
        if not incoming.feed(self._server.reading[:nbytes]):
            self._eof = True
        if incoming.long is not None and incoming.refusal is None:
            self._transport.set_protocol(incoming.long)
        self._next()

    # a long body, and one that waits for leave

    def _long_body(self, size_bytes: int) -> LongBody:
        return LongBody(size_bytes, self, self._received)

    def _received(self, count: int) -> None:
        """Count what came of a long body, and go on when it is whole or refused."""
        transport, incoming = self._transport, self._incoming
        if transport is None or incoming.long is None:
            return
        if self._discarding:
            incoming.long = None
        elif not incoming.take_long(count):
            return
        transport.set_protocol(self)
        if not self._discarding:
            self._next()

    def _say_continue(self) -> None:
        self._write(b"HTTP/1.1 100 Continue\r\n\r\n")

    # answering

    def _next(self) -> None:
        """Start the next request if none runs; refuse what came when nothing is left before it."""
        transport, incoming = self._transport, self._incoming
        if transport is None or self._running:
            self._pause(transport)
            return
        if incoming.waiting:
            request, keep_alive = incoming.waiting.popleft()
            self._running = True
            self._server.handler(request, partial(self._answer, len(request.body), keep_alive))
        elif incoming.refusal is not None:
            refusal, incoming.refusal = incoming.refusal, None
            self._refuse(refusal)
        self._pause(self._transport)

    def _pause(self, transport: asyncio.Transport | None) -> None:
        if transport is None or transport.is_closing():
            return
        if self._incoming.waiting:
            transport.pause_reading()  # allowed when paused already
        else:
            transport.resume_reading()

    def _answer(self, body_bytes: int, keep_alive: bool, response: Response) -> None:
        self._running = False
        transport, incoming = self._transport, self._incoming
        if transport is None:
            return  # the client died in the middle, and connection_lost has counted its bytes
        incoming.release(body_bytes)
        close = not keep_alive or self._server.draining or (self._eof and not incoming.waiting)
        self._write(rendered(response, close=close))
        if close:
            incoming.waiting.clear()
            self.close()
            return
        if not incoming.receiving:
            self.since = time.monotonic()
        if incoming.waiting or incoming.refusal is not None:
            self._next()

    def _refuse(self, response: Response) -> None:
        """Answer, then throw away what still comes for a moment, then close."""
        logger.info("event=request_refused status=%s", response.status)
        self._write(rendered(response, close=True))
        self._discarding = True
        self._incoming.receiving = False
        self._incoming.waiting.clear()
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
        transport, limits, incoming = self._transport, self._limits, self._incoming
        if transport is None:
            return
        if self._blocked_since is not None and now - self._blocked_since > limits.write_timeout_s:
            logger.warning("event=client_does_not_read seconds=%s", limits.write_timeout_s)
            transport.abort()
        elif self._discarding:
            if now - self.since > _LINGER_S:
                transport.abort()
        elif incoming.receiving:
            limit = limits.header_timeout_s if incoming.in_headers else limits.body_timeout_s
            if now - incoming.since > limit and not self._running:
                self._refuse(error_response(408, f"the request was not complete after {limit:g} s"))
        elif self.is_idle and now - self.since > limits.idle_timeout_s:
            transport.close()
