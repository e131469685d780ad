"""Answering a device's `Get` with chunks of a blob: how much, of what, and where to. Publishing is the caller's.

Every limit is here, because a device may ask for anything: at most `max_chunks` per Get (it asks for the rest
itself), only ranges within the blob, each chunk once. A Get that cannot be answered gets a Response with the id
`get-{transfer}`. The file is read chunk by chunk as the caller takes them, so nothing is held for a slow link.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import BinaryIO, Literal, NamedTuple

from regatta_protocol import topics
from regatta_protocol.chunk import Chunk, chunk_count, pack_chunk
from regatta_protocol.codec import encode_zlib
from regatta_protocol.errors import Rejected, Retryable
from regatta_protocol.ids import DeviceId, Digest
from regatta_protocol.messages import Get, Response

__all__ = ["MAX_CHUNKS_PER_GET", "Outbound", "Sender"]

MAX_CHUNKS_PER_GET = 512  # twice the widest window of an agent


class Outbound(NamedTuple):
    """A message to publish."""

    topic: str
    payload: bytes

    @property
    def qos(self) -> Literal[0, 1]:
        """0 for chunks, 1 for an answer that says why there are none."""
        return 0 if "/dn/chunk/" in self.topic else 1


class Sender:
    """Reads blobs through `open_blob` and cuts them up."""

    def __init__(self, open_blob: Callable[[Digest], BinaryIO], max_chunks: int = MAX_CHUNKS_PER_GET) -> None:
        """
        Args:
            open_blob: returns the blob opened for reading and seeking; raises Rejected (or FileNotFoundError) when
                there is none of this digest, and Retryable (or another OSError) when it cannot be read now.
        """
        self._open_blob = open_blob
        self._max_chunks = max_chunks

    def answer(self, device: DeviceId, get: Get) -> Iterator[Outbound]:
        """Yield what to publish: the chunks asked for, each once and in order of asking, or one refusal."""
        try:
            with self._open_blob(get.digest) as file:
                size_bytes = file.seek(0, os.SEEK_END)
                for index in self._indices(get, chunk_count(size_bytes, get.chunk_bytes)):
                    file.seek(index * get.chunk_bytes)
                    payload = file.read(get.chunk_bytes)
                    chunk = pack_chunk(Chunk(get.transfer, index, payload))
                    yield Outbound(topics.chunk(device, get.transfer), chunk)
        except FileNotFoundError:
            yield _refusal(device, get, f"there is no blob {get.digest}", retryable=False)
        except Rejected as err:
            yield _refusal(device, get, str(err), retryable=False)
        except (Retryable, OSError) as err:
            yield _refusal(device, get, f"blob {get.digest} cannot be read at the moment: {err}", retryable=True)

    def _indices(self, get: Get, count: int) -> Iterator[int]:
        """Yield the chunks to send.

        Raises:
            Rejected: when a range is empty or not within the blob.
        """
        for start, stop in get.ranges:
            if not 0 <= start < stop <= count:
                raise Rejected(
                    f"range {start}..{stop} is not within the {count} chunks of {get.chunk_bytes} bytes of {get.digest}"
                )
        sent: set[int] = set()
        for start, stop in get.ranges:
            for index in range(start, min(stop, start + self._max_chunks)):
                if len(sent) >= self._max_chunks:
                    return
                if index not in sent:
                    sent.add(index)
                    yield index


def _refusal(device: DeviceId, get: Get, reason: str, *, retryable: bool) -> Outbound:
    response = Response(id=f"get-{get.transfer}", error=reason, retryable=retryable)
    return Outbound(topics.response(device), encode_zlib(response))
