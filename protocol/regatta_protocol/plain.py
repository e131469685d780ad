"""JSON into frozen dataclasses, strictly by their annotations, and back. Imports no pydantic.

For what a serving worker reads and tells, for the agent's settings, and for parts of a manifest that only a worker
needs: pydantic and the classes made by it would take a quarter of a worker (docs/adr/0024-workers-without-pydantic.md).
What crosses the wire is read by codec.py. Fields that a class does not have are passed over, as on the wire, unless it
is Strict; annotations.py says what a class may hold.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Mapping
from dataclasses import fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from regatta_protocol.annotations import Wrong, reader_of
from regatta_protocol.errors import Rejected, TooLarge

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["parse_json", "read", "read_json", "to_document", "to_json"]

M = TypeVar("M")


def parse_json(data: bytes) -> object:
    """Return the JSON document in UTF-8 `data`, whose length the caller has bounded.

    Raises:
        Rejected: when it is none, is nested too deeply, or has half of a surrogate pair, which is no text.
    """
    try:
        document: object = json.loads(str(data, "utf-8"))
        if b"\\ud" in data or b"\\uD" in data:
            json.dumps(document, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as err:
        raise Rejected(f"this is no JSON: {err}") from err
    return document


def read_json(kind: type[M], data: bytes, limit_bytes: int) -> M:
    """Return the `kind` in JSON `data`.

    Raises:
        TooLarge: when `data` is over the limit.
        Rejected: as `read`, or when it is no JSON.
    """
    if len(data) > limit_bytes:
        raise TooLarge(f"{kind.__name__} of {len(data)} bytes is over the limit of {limit_bytes}")
    return read(kind, parse_json(data))


def read(kind: type[M], document: object, refusal: str | None = None) -> M:
    """Return the `kind` that parsed JSON describes.

    Args:
        kind: a dataclass.
        document: as json.loads or tomllib.loads return it.
        refusal: what the text of a refusal begins with.

    Raises:
        Rejected: when it is none; the text names the first wrong field.
    """
    try:
        return cast("M", reader_of(cast("Hashable", kind))(document))
    except Wrong as err:
        where = f"{'.'.join(err.where)}: " if err.where else ""
        raise Rejected(f"{refusal or f'this is no {kind.__name__}'}: {where}{err}") from err


def to_json(value: DataclassInstance) -> bytes:
    """Return a dataclass as JSON, see to_document."""
    return json.dumps(to_document(value), separators=(",", ":"), allow_nan=False).encode()


def to_document(value: DataclassInstance) -> dict[str, Any]:
    """Return a dataclass as `read` takes it: dicts, lists, text and numbers.

    Fields that are None are left out, and so are those that are no finite number: JSON has none of these.
    """
    named = ((name, _document(getattr(value, name))) for name in _names_of(type(value)))
    return {name: held for name, held in named if held is not None}


@lru_cache(maxsize=512)  # kinds, as for their readers
def _names_of(kind: type[DataclassInstance]) -> list[str]:
    """Return the names of the fields, asked for once.

    `fields` makes a tuple of a generator, and with each such one Python keeps one more free tuple, up to 2,000 of a
    length (CPython 3.10 to 3.13, Objects/tupleobject.c).
    """
    return [one.name for one in fields(kind)]


def _document(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return to_document(value)
    if isinstance(value, Mapping):
        return {str(key): _document(held) for key, held in value.items()}
    if isinstance(value, tuple | list):
        return [_document(held) for held in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
