"""A chunk of a blob on the wire: a 16-byte header, then at most 64 KiB.

    offset  size  field
    0       1     version, 1
    1       1     flags, 0
    2       2     reserved, 0
    4       4     transfer, big-endian, as in Get
    8       4     index of the chunk
    12      4     CRC-32 of the payload (zlib's)

The CRC finds truncation and mix-ups early; trust comes only from the digest of the whole blob.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from regatta_protocol.errors import Rejected

__all__ = [
    "DEFAULT_CHUNK_BYTES",
    "HEADER_BYTES",
    "MAX_CHUNK_BYTES",
    "Chunk",
    "chunk_count",
    "pack_chunk",
    "unpack_chunk",
]

_HEADER = struct.Struct("!BBHIII")
HEADER_BYTES = _HEADER.size
MAX_CHUNK_BYTES = 65_536  # best on fast links: 624 MB/s; 128 KiB falls to half (wire.md)
DEFAULT_CHUNK_BYTES = 16_384  # best under about 2 Mbit/s (wire.md)
_VERSION = 1


@dataclass(frozen=True)
class Chunk:
    transfer: int
    index: int
    payload: bytes


def chunk_count(size_bytes: int, chunk_bytes: int) -> int:
    """Return how many chunks a blob has; an empty blob has none."""
    return -(-size_bytes // chunk_bytes)


def pack_chunk(chunk: Chunk) -> bytes:
    """Return the chunk as it travels."""
    return _HEADER.pack(_VERSION, 0, 0, chunk.transfer, chunk.index, zlib.crc32(chunk.payload)) + chunk.payload


def unpack_chunk(data: bytes) -> Chunk:
    """Return the chunk in `data`.

    Raises:
        Rejected: when it is cut off, too long, of an unknown version, or its CRC does not match.
    """
    if not HEADER_BYTES <= len(data) <= HEADER_BYTES + MAX_CHUNK_BYTES:
        raise Rejected(
            f"a chunk of {len(data)} bytes is not between {HEADER_BYTES} and {HEADER_BYTES + MAX_CHUNK_BYTES}"
        )
    version, _flags, _reserved, transfer, index, crc = _HEADER.unpack_from(data)
    if version != _VERSION:
        raise Rejected(f"chunk version {version} is not known here: this program speaks {_VERSION}")
    payload = data[HEADER_BYTES:]
    if zlib.crc32(payload) != crc:
        raise Rejected(f"chunk {index} of transfer {transfer} arrived damaged (CRC)")
    return Chunk(transfer, index, payload)
