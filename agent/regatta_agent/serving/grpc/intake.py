"""How much is received and held at once, over all gRPC endpoints of a worker. Used on the loop.

grpcio bounds a message, a connection's streams, the connections and the calls, but not the bytes of all messages
together: with 32 MiB for a picture, 256 calls could hold 8 GiB. So messages are taken from it a few at a time, and
those whose calls wait for an answer share the bound that bodies over HTTP have. One that is being taken is there twice,
in grpcio's memory and in Python's.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import grpc

from regatta_agent.serving.grpc.refusing import Context, Refused
from regatta_agent.serving.http import HttpServer

__all__ = ["Intake"]

# Of messages that are being received or read; there is always room for so many of the greatest. A slow client keeps its
# place for as long as a message may take, so that too few places would let a handful of them hold up everybody.
_RECEIVED_BYTES = 64 * 1024 * 1024
_LEAST_RECEIVED = 8


class Intake:
    """The places for messages, and for streams, of which each may be receiving one."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        places = max(_LEAST_RECEIVED, _RECEIVED_BYTES // server.body_limit_bytes)
        self._places = asyncio.Semaphore(places)
        self._most_streams = places
        self._streams = 0

    @contextlib.asynccontextmanager
    async def message(self, context: Context) -> AsyncIterator[bytes]:
        """Give the one message of a call, which has its place until it was read.

        Raises:
            Refused: when it is not complete in time, or there is none.
        """
        limit_s = self._server.limits.body_timeout_s
        try:
            data = await asyncio.wait_for(self._received(context), limit_s)
        except asyncio.TimeoutError:
            text = f"the message was not complete after {limit_s:g} s"
            raise Refused(grpc.StatusCode.DEADLINE_EXCEEDED, text) from None
        try:
            if not isinstance(data, bytes):
                raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "no message came with the call")
            yield data
        finally:
            self._places.release()

    async def _received(self, context: Context) -> object:
        """Return the message, with a place for it."""
        await self._places.acquire()
        try:
            return await context.read()
        except BaseException:
            self._places.release()
            raise

    @contextlib.contextmanager
    def stream(self) -> Iterator[None]:
        """Have a stream open.

        Raises:
            Refused: when too many are.
        """
        if self._streams >= self._most_streams:
            text = f"{self._streams} streams are open, which is the limit: keep one and send many requests over it"
            raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, text, 1)
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1

    def hold(self, size_bytes: int) -> None:
        """Count so many bytes until `let_go`.

        Raises:
            Refused: when too many are held.
        """
        if not self._server.has_room(size_bytes):
            raise Refused(grpc.StatusCode.UNAVAILABLE, "too many bytes are being received at once: try again", 1)
        self._server.held_bytes += size_bytes

    def let_go(self, size_bytes: int) -> None:
        """Count them no more."""
        self._server.held_bytes -= size_bytes
