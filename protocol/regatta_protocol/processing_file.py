"""Reads a user's file that describes pre- and post-processing, in TOML or JSON.

Unknown keys are refused: misspelled ones would else be left out in silence, since what travels on the wire tolerates
them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path

from regatta_protocol.durable import read_bounded
from regatta_protocol.errors import Rejected
from regatta_protocol.plain import read
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
    document = _parsed(read_bounded(path, _MAX_BYTES), path.name)
    processing = read(Processing, document, path.name)
    unknown = _unknown(document, processing, "")
    if unknown:
        raise Rejected(f"{path.name} has unknown keys: {', '.join(unknown)}: docs/processing.md lists the known ones")
    return processing


def _parsed(data: bytes, name: str) -> object:
    try:
        text = data.decode()
        document: object = json.loads(text) if text.lstrip().startswith("{") else tomllib.loads(text)
    except (ValueError, RecursionError) as err:
        raise Rejected(f"{name} is neither TOML nor JSON: {err}") from err
    return document


def _unknown(document: object, part: object, prefix: str) -> list[str]:
    """Return the keys of the document that the part which was read from it does not have."""
    if not isinstance(document, Mapping) or not is_dataclass(part):
        return []
    known = {one.name for one in fields(part)}
    found = [f"{prefix}{key}" for key in document if key not in known]
    for key in known & document.keys():
        found += _unknown(document[key], getattr(part, key), f"{prefix}{key}.")
    return found
