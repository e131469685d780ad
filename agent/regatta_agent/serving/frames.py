"""Frames between a worker and its runner over a unix socket: a kind, a text, and arrays of plain numbers.

Nothing is pickled, and both sides bound what they take: the runner holds vendor code, which may have overwritten
anything. A side with patience waits in slices and gives up after so many that brought nothing; a process that was
stopped itself (SIGSTOP, a frozen cgroup) loses one slice by that and not all of them.
"""

from __future__ import annotations

import math
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from regatta_agent.serving.tensors import Array
from regatta_protocol.errors import Rejected

__all__ = ["MAX_TEXT_BYTES", "Channel", "Frame", "Kind"]

_HEAD = struct.Struct("<BIH")  # kind, bytes of text, number of arrays
_ARRAY = struct.Struct("<4sB8q")  # dtype as numpy writes it, number of dimensions, dimensions
_DIMENSIONS = 8
MAX_TEXT_BYTES = 1 << 20
_MAX_ARRAYS = 256
_MAX_ARRAY_BYTES = 1 << 28  # a segmentation map of 4096 x 4096 classes in float32 fits
_JOINED_BYTES = 65_536  # smaller frames leave in one write; larger ones would be copied for it
_SLICES = 5


class Kind(IntEnum):
    """What a frame is."""

    OPEN = 1  # text: an Opening
    OPENED = 2  # text: an Opened
    RUN = 3  # arrays: the inputs
    OUTPUTS = 4  # text: nanoseconds inside the runtime; arrays: the outputs
    FAILED = 5  # text: why


@dataclass(frozen=True)
class Frame:
    kind: Kind
    text: bytes
    arrays: list[Array]


class Channel:
    """One end of the socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def close(self) -> None:
        """Close the socket."""
        self._connection.close()

    def send(
        self, kind: Kind, text: bytes = b"", arrays: Sequence[Array] = (), patience_s: float | None = None
    ) -> None:
        """Send a frame.

        Raises:
            Rejected: when an array is not of plain numbers, or has too many dimensions.
            TimeoutError: when the other side does not read for `patience_s`; None waits for ever.
            OSError: when the other side is gone.
        """
        parts = [_HEAD.pack(kind, len(text), len(arrays)), text]
        contiguous = [np.asarray(array, order="C") for array in arrays]
        for array in contiguous:
            if array.dtype.kind not in "biuf" or array.ndim > _DIMENSIONS:
                raise Rejected(f"a tensor of {array.dtype} {list(array.shape)} cannot be passed to a runner")
            dimensions = (*array.shape, *(0,) * (_DIMENSIONS - array.ndim))
            parts.append(_ARRAY.pack(array.dtype.str.encode(), array.ndim, *dimensions))
        bodies = [array.reshape(-1).view(np.uint8).data for array in contiguous if array.size]
        if sum(len(body) for body in bodies) <= _JOINED_BYTES:
            self._write(memoryview(b"".join((*parts, *bodies))), patience_s)
            return
        self._write(memoryview(b"".join(parts)), patience_s)
        for body in bodies:
            self._write(body, patience_s)

    def receive(self, patience_s: float | None = None) -> Frame:
        """Return the next frame.

        Raises:
            EOFError: when the other side is gone.
            TimeoutError: when it sends nothing for `patience_s`; None waits for ever.
            Rejected: when what comes is no frame, or too large.
        """
        kind, text_bytes, count = _HEAD.unpack(self._read(_HEAD.size, patience_s))
        if text_bytes > MAX_TEXT_BYTES or count > _MAX_ARRAYS or kind not in _KINDS:
            raise Rejected(f"no frame came: kind {kind}, {text_bytes} bytes of text, {count} arrays")
        rest = self._read(text_bytes + count * _ARRAY.size, patience_s)
        arrays = []
        for index in range(count):
            array = _empty(*_ARRAY.unpack_from(rest, text_bytes + index * _ARRAY.size))
            if array.size:
                self._read_into(array.reshape(-1).view(np.uint8).data, patience_s)
            arrays.append(array)
        return Frame(Kind(kind), bytes(rest[:text_bytes]), arrays)

    def _write(self, data: memoryview, patience_s: float | None) -> None:
        self._connection.settimeout(None if patience_s is None else patience_s / _SLICES)
        expired = 0
        while data:
            try:
                data = data[self._connection.send(data) :]
            except TimeoutError:
                expired += 1
                if expired >= _SLICES:
                    raise

    def _read(self, size: int, patience_s: float | None) -> bytearray:
        data = bytearray(size)
        self._read_into(memoryview(data), patience_s)
        return data

    def _read_into(self, target: memoryview, patience_s: float | None) -> None:
        self._connection.settimeout(None if patience_s is None else patience_s / _SLICES)
        expired = 0
        while target:
            try:
                count = self._connection.recv_into(target)
            except TimeoutError:
                expired += 1
                if expired >= _SLICES:
                    raise
                continue
            except ConnectionResetError:
                count = 0
            if count == 0:
                raise EOFError
            target = target[count:]


_KINDS = frozenset(int(kind) for kind in Kind)


def _empty(name: bytes, count: int, *dimensions: int) -> Array:
    """Return an array to receive into."""
    text, shape = name.rstrip(b"\0").decode("ascii", "replace"), dimensions[:count]
    known = len(text) > 2 and text[1] in "biuf" and text[2:].isdigit()
    if not known or count > _DIMENSIONS or min(shape, default=0) < 0:
        raise Rejected(f"no array came: dtype {text!r}, {count} dimensions")
    try:
        dtype = np.dtype(text)
    except TypeError as err:
        raise Rejected(f"no array came: dtype {text!r}") from err
    if math.prod(shape) * dtype.itemsize > _MAX_ARRAY_BYTES:
        raise Rejected(f"an array of {list(shape)} {text} is over the limit of {_MAX_ARRAY_BYTES} bytes")
    return np.empty(shape, dtype)
