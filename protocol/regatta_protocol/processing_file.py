"""Reads a user's file that describes pre- and post-processing, in TOML or JSON.

Unknown keys are refused: misspelled ones would else be left out in silence, since what travels on the wire tolerates
them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from regatta_protocol.durable import read_bounded
from regatta_protocol.errors import Rejected
from regatta_protocol.processing import Processing

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["read_processing"]

_MAX_BYTES = 256 * 1024  # it must fit into a manifest


def read_processing(path: Path) -> Processing:
    """Return what the file describes.

    Raises:
        Rejected: when it is neither TOML nor JSON, or has a key or value that is not known; the text names the key.
        TooLarge: when it is over 256 KiB.
    """
    processing = _parsed(read_bounded(path, _MAX_BYTES), path.name)
    unknown = _unknown(processing, "")
    if unknown:
        raise Rejected(f"{path.name} has unknown keys: {', '.join(unknown)}: docs/processing.md lists the known ones")
    return processing


def _parsed(data: bytes, name: str) -> Processing:
    document: Any
    try:
        text = data.decode()
        document = json.loads(text) if text.lstrip().startswith("{") else tomllib.loads(text)
    except (ValueError, RecursionError) as err:
        raise Rejected(f"{name} is neither TOML nor JSON: {err}") from err
    try:
        return Processing.model_validate(document)
    except ValidationError as err:
        first = err.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        raise Rejected(f"{name}: {key}: {first['msg']}") from err


def _unknown(part: BaseModel, prefix: str) -> list[str]:
    found = [f"{prefix}{key}" for key in part.model_extra or ()]
    for key in type(part).model_fields:
        value = getattr(part, key)
        if isinstance(value, BaseModel):
            found += _unknown(value, f"{prefix}{key}.")
    return found
