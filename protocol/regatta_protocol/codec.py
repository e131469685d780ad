"""Bytes to messages and back, with a limit on every size. The only place that compresses or parses wire JSON.

Parsing is pydantic's (Rust): the standard library's json raises RecursionError on deep nesting. Decompression is
bounded, so that a small message cannot become a large one. A message's `schema_version` grows only when an older
program could not read it as it is meant, so one above ours is refused as such, whether or not it parses.
"""

from __future__ import annotations

import zlib
from functools import cache
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from regatta_protocol.errors import Rejected, TooLarge, TooNew

__all__ = ["MAX_INFLATED_BYTES", "MAX_PAYLOAD_BYTES", "decode", "decode_zlib", "encode", "encode_zlib"]

MAX_PAYLOAD_BYTES = 65_536 + 16  # AWS IoT Core carries 128 KiB; 64 KiB and a chunk's header is fastest (wire.md)
MAX_INFLATED_BYTES = 2 * 1024 * 1024

M = TypeVar("M", bound=BaseModel)


class _Schema(BaseModel):
    """Of any message, its schema alone."""

    schema_version: int = 0


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
        TooNew: when its schema is newer than ours.
        Rejected: when it is no such message; the text names the first wrong field.
    """
    if len(data) > limit_bytes:
        raise TooLarge(f"{kind.__name__} of {len(data)} bytes is over the limit of {limit_bytes}")
    try:
        message = kind.model_validate_json(data)
    except ValidationError as err:
        _refuse_newer(kind, data)
        first = err.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole message"
        raise Rejected(f"this is no {kind.__name__}: {where}: {first['msg']}") from err
    known = _newest_known(kind)
    if known and getattr(message, "schema_version", 0) > known:
        _refuse_newer(kind, data)
    return message


@cache  # kinds are few; a field's default costs as much to look up as a short message to parse
def _newest_known(kind: type[BaseModel]) -> int:
    """Return the schema that we write, which is the newest that we read; 0 for a message without one."""
    field = kind.model_fields.get("schema_version")
    return int(field.default) if field is not None else 0


def _refuse_newer(kind: type[BaseModel], data: bytes) -> None:
    """Raise TooNew when `data` says that it is of a newer schema."""
    known = _newest_known(kind)
    try:
        said = _Schema.model_validate_json(data).schema_version
    except ValidationError:
        return
    if 0 < known < said:
        raise TooNew(
            f"this {kind.__name__} is of schema version {said}, and this program knows up to {known}: update it"
        )


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
