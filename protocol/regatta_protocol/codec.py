"""Bytes to messages and back, with a limit on every size. The only place that compresses or parses wire JSON.

Parsing is pydantic's (Rust): the standard library's json raises RecursionError on deep nesting. Decompression is
bounded, so that a small message cannot become a large one.
"""

from __future__ import annotations

import zlib
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from regatta_protocol.errors import Rejected, TooLarge

__all__ = ["MAX_INFLATED_BYTES", "MAX_PAYLOAD_BYTES", "decode", "decode_zlib", "encode", "encode_zlib"]

MAX_PAYLOAD_BYTES = 65_536 + 16  # AWS IoT Core carries 128 KiB; 64 KiB and a chunk's header is fastest (wire.md)
MAX_INFLATED_BYTES = 2 * 1024 * 1024

M = TypeVar("M", bound=BaseModel)


def encode(message: BaseModel, limit_bytes: int = MAX_PAYLOAD_BYTES) -> bytes:
    """Return the message as JSON.

    Raises:
        TooLarge: when it is over `limit_bytes`.
    """
    data = message.model_dump_json(exclude_none=True).encode()
    if len(data) > limit_bytes:
        raise TooLarge(f"{type(message).__name__} of {len(data)} bytes is over the limit of {limit_bytes}")
    return data


def decode(kind: type[M], data: bytes, limit_bytes: int = MAX_PAYLOAD_BYTES) -> M:
    """Return the message in `data`.

    Raises:
        TooLarge: when `data` is over the limit.
        Rejected: when it is no such message; the text names the first wrong field.
    """
    if len(data) > limit_bytes:
        raise TooLarge(f"{kind.__name__} of {len(data)} bytes is over the limit of {limit_bytes}")
    try:
        return kind.model_validate_json(data)
    except ValidationError as err:
        first = err.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole message"
        raise Rejected(f"this is no {kind.__name__}: {where}: {first['msg']}") from err


def encode_zlib(message: BaseModel, limit_bytes: int = MAX_PAYLOAD_BYTES) -> bytes:
    """Return the message as zlib-compressed JSON.

    Raises:
        TooLarge: when it is over `limit_bytes` once compressed, or over MAX_INFLATED_BYTES before.
    """
    data = zlib.compress(encode(message, MAX_INFLATED_BYTES), 6)
    if len(data) > limit_bytes:
        raise TooLarge(f"{type(message).__name__} of {len(data)} compressed bytes is over the limit of {limit_bytes}")
    return data


def decode_zlib(kind: type[M], data: bytes, limit_bytes: int = MAX_PAYLOAD_BYTES) -> M:
    """Return the message in zlib-compressed `data`.

    Raises:
        TooLarge: when it is over the limit, compressed or inflated.
        Rejected: when it is not zlib, or no such message.
    """
    if len(data) > limit_bytes:
        raise TooLarge(f"{kind.__name__} of {len(data)} bytes is over the limit of {limit_bytes}")
    inflater = zlib.decompressobj()
    try:
        inflated = inflater.decompress(data, MAX_INFLATED_BYTES)
    except zlib.error as err:
        raise Rejected(f"this is no compressed {kind.__name__}: {err}") from err
    if inflater.unconsumed_tail:
        raise TooLarge(f"{kind.__name__} inflates to over {MAX_INFLATED_BYTES} bytes")
    if not inflater.eof:
        raise Rejected(f"this compressed {kind.__name__} is cut off after {len(data)} bytes")
    return decode(kind, inflated, MAX_INFLATED_BYTES)
