"""The identity folder a second time, in one file that carries its digest: a damaged file of the folder comes from here.

    <SHA-256 of all that follows this line, in hex>
    {"schema_version":1,"files":{"identity.json":"…","key-….pem":"…",…}}

A boot loader keeps its environment so: two copies, a checksum, and the whole one counts (U-Boot, "Redundant
environment"). identity.py writes this file before those that it holds, so where it is whole and they differ, it is
right. What the files mean, and when they are restored, is not known here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field

from regatta_protocol.codec import decode, encode
from regatta_protocol.durable import read_patiently, shortage_of, write_durably
from regatta_protocol.errors import RegattaError
from regatta_protocol.wire import Wire

__all__ = ["FILE_NAME", "SEALED_FILE", "read_sealed", "write_sealed"]

SEALED_FILE = "identity.sealed"
FILE_NAME = r"^[A-Za-z0-9][A-Za-z0-9.-]{0,99}$"  # a name in the folder, never a path out of it
_MAX_BYTES = 512 * 1024  # MAX_ENROLL_BYTES holds the same files, and JSON in JSON escapes quotes and line ends


class _Sealed(Wire):
    schema_version: int = 1
    files: dict[Annotated[str, Field(pattern=FILE_NAME)], str]


def write_sealed(folder: Path, files: Mapping[str, bytes]) -> None:
    """Keep these files of the folder, by their names, in place of those kept before.

    Raises:
        StorageFull, OSError: when it cannot be written; what was kept before is untouched.
    """
    body = encode(_Sealed(files={name: content.decode() for name, content in files.items()}), _MAX_BYTES)
    write_durably(folder / SEALED_FILE, _digest(body) + b"\n" + body)


def read_sealed(folder: Path) -> dict[str, bytes] | None:
    """Return the files that are kept; None when there are none, or they are damaged or cannot be read.

    Raises:
        Exhausted: for want of descriptors or memory, which says nothing about the file.
    """
    path = folder / SEALED_FILE
    try:
        digest, _, body = read_patiently(path, _MAX_BYTES).partition(b"\n")
        if digest != _digest(body):
            return None
        sealed = decode(_Sealed, body, _MAX_BYTES)
    except OSError as err:
        shortage = shortage_of(err, str(path))
        if shortage is not None:
            raise shortage from err
        return None
    except RegattaError:
        return None
    return {name: text.encode() for name, text in sealed.files.items()}


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode()
