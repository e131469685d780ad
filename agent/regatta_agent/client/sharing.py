"""The client's shared memory: one POSIX object in which a request's inputs and outputs lie (Triton's extension).

The worker copies from and to it, so it may be written again once the answer is there. It grows by being made anew.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from regatta_agent.client.messages import Described, Part
from regatta_agent.serving.tensors import DATATYPES, Array
from regatta_protocol.errors import Rejected, Retryable

__all__ = ["SharedRegion"]

_FOLDER = Path("/dev/shm")  # noqa: S108 - where shm_open(3) of glibc and musl keeps its objects
_MODE = 0o660  # the worker must be this user's, or of this group
_ALIGNED = 64
_BYTES = DATATYPES["BYTES"]
_WIDEST = 4  # an output of integers may be answered in real values, FP32


class SharedRegion:
    """An object that is made when it is needed. Used by one request at a time."""

    def __init__(self) -> None:
        self._map: mmap.mmap | None = None
        self._path: Path | None = None
        self.size = 0
        self.name = ""  # of the object, and of the region that it is registered as

    def place(
        self, inputs: Sequence[Described], parts: Sequence[Part], outputs: Sequence[Mapping[str, Any]]
    ) -> tuple[tuple[Described, ...], list[dict[str, Any]]]:
        """Put the inputs in, and return where they are and the wishes for the outputs, which follow.

        An output of changeable size comes in the answer itself.

        Raises:
            Retryable: when there is no room for the object.
        """
        offset, places = 0, []
        for part in parts:
            places.append(offset)
            offset += _padded(len(part))
        sizes = [_output_bytes(output) for output in outputs]
        self._ensure(offset + sum(_padded(size) for size in sizes if size is not None))
        assert self._map is not None
        placed = []
        for one, part, place in zip(inputs, parts, places, strict=True):
            self._map[place : place + len(part)] = bytes(part)
            placed.append(one._replace(parameters=tuple(self._where(place, len(part)).items())))
        wishes = []
        for output, size in zip(outputs, sizes, strict=True):
            parameters = {"binary_data": True} if size is None else self._where(offset, size)
            offset += 0 if size is None else _padded(size)
            wishes.append({"name": output["name"], "parameters": parameters})
        return tuple(placed), wishes

    def read(self, output: Mapping[str, Any]) -> Array:
        """Return a copy of the output that an answer says is here.

        Raises:
            Rejected: when it is not.
        """
        parameters = output["parameters"]
        place, size = int(parameters.get("shared_memory_offset", 0)), int(parameters["shared_memory_byte_size"])
        dtype = DATATYPES.get(str(output["datatype"]), _BYTES)
        shape = [int(length) for length in output["shape"]]
        fits = dtype.kind != "O" and math.prod(shape) * dtype.itemsize == size and place + size <= self.size
        if self._map is None or not fits:
            raise Rejected(f"the worker's answer has {output['datatype']} {shape} in {size} bytes of shared memory")
        return np.frombuffer(self._map[place : place + size], dtype=dtype).reshape(shape)

    def _where(self, place: int, size: int) -> dict[str, int | str]:
        return {
            "shared_memory_region": self.name, "shared_memory_offset": place, "shared_memory_byte_size": size
        }  # fmt: skip

    def _ensure(self, size: int) -> None:
        if size <= self.size:
            return
        self.close()
        self.name = f"regatta-{os.getpid()}-{secrets.token_hex(8)}"
        path = _FOLDER / self.name
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, _MODE)
            try:
                os.posix_fallocate(descriptor, 0, size)  # now, for without room a write to the map would be SIGBUS
                self._map = mmap.mmap(descriptor, size)
            finally:
                os.close(descriptor)
        except OSError as err:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            raise Retryable(f"{size} bytes of shared memory cannot be had in {_FOLDER}: {err.strerror}") from err
        self._path, self.size = path, size

    def close(self) -> None:
        """Give the object back."""
        if self._map is not None:
            self._map.close()
            self._map = None
        if self._path is not None:
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()
            self._path = None
        self.size = 0


def _padded(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


def _output_bytes(output: Mapping[str, Any]) -> int | None:
    """Return how much room an output needs at most, or None when that is not known beforehand."""
    shape = [int(length) for length in output["shape"]]
    dtype = DATATYPES.get(str(output["datatype"]), _BYTES)
    if dtype.kind == "O" or any(length < 0 for length in shape):
        return None
    return math.prod(shape) * max(dtype.itemsize, _WIDEST)
