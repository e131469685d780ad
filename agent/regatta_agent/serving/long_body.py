"""A long body, received to where it will lie: the parser and asyncio would copy it, holding the interpreter's lock.

A batch job's stack is read while the engine computes the one before, and while the reading thread holds the lock
the engine's may have to wait for it. So what is still to come of such a body, once its headers have been parsed, is put
into its buffer by the kernel. Of a body below LONG_BYTES asyncio reads all at once, and there is little to gain.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np

__all__ = ["LONG_BYTES", "LongBody"]

LONG_BYTES = 256 * 1024


class LongBody(asyncio.BufferedProtocol):
    """A body of known length, and its connection's protocol until it is whole."""

    def __init__(self, size_bytes: int, owner: asyncio.BufferedProtocol, received: Callable[[int], None]) -> None:
        """Keep room for it, which takes memory as it is filled.

        Args:
            size_bytes: how long it is.
            owner: the connection's protocol otherwise.
            received: told of how many bytes have come, while this is the protocol.
        """
        self._owner = owner
        self._received = received
        self._have = 0
        self.buffer = np.empty(size_bytes, dtype=np.uint8).data

    @property
    def is_whole(self) -> bool:
        """Whether all of it has come."""
        return self._have == len(self.buffer)

    def add(self, piece: bytes) -> None:
        """Take what came together with the headers."""
        self.buffer[self._have : self._have + len(piece)] = piece
        self._have += len(piece)

    # asyncio.BufferedProtocol

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.buffer[self._have :]

    def buffer_updated(self, nbytes: int) -> None:
        self._have += nbytes
        self._received(nbytes)

    def eof_received(self) -> bool | None:
        return self._owner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._owner.connection_lost(exc)

    def pause_writing(self) -> None:
        self._owner.pause_writing()

    def resume_writing(self) -> None:
        self._owner.resume_writing()
