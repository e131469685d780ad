"""Names that cross the wire, and the only places where text becomes one of them.

Invariants: a `DeviceId` fits one MQTT topic level and a certificate's common name; a `ModelName` fits a topic
level, a file name and a URL path segment; a `Digest` is the lower-case hex SHA-256 of a whole file.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NewType

from regatta_protocol.bounds import Bounds
from regatta_protocol.errors import Rejected

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema

__all__ = [
    "DEVICE_ID_PATTERN",
    "DIGEST_PATTERN",
    "MODEL_NAME_PATTERN",
    "SERVER_IDENTITY",
    "DeviceId",
    "DeviceIdField",
    "Digest",
    "DigestField",
    "ModelName",
    "ModelNameField",
    "ModelRef",
    "digest_of_bytes",
    "digest_of_file",
    "parse_device_id",
    "parse_model_name",
    "parse_model_ref",
]

DEVICE_ID_PATTERN = r"^[a-z0-9-]{1,64}$"
MODEL_NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"
DIGEST_PATTERN = r"^[0-9a-f]{64}$"

DeviceId = NewType("DeviceId", str)
ModelName = NewType("ModelName", str)
Digest = NewType("Digest", str)

SERVER_IDENTITY = "regatta-server"  # the server's own name at the broker, which may do everything there: no device's


def _not_the_server(text: str) -> DeviceId:
    if text == SERVER_IDENTITY:
        raise ValueError(f"{SERVER_IDENTITY!r} is kept for the server")
    return DeviceId(text)


class _NotTheServer:
    """In an annotation: has pydantic refuse the server's own name, and is loaded without it."""

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(_not_the_server, handler(source))


DeviceIdField = Annotated[DeviceId, Bounds(pattern=DEVICE_ID_PATTERN), _NotTheServer()]
ModelNameField = Annotated[ModelName, Bounds(pattern=MODEL_NAME_PATTERN)]
DigestField = Annotated[Digest, Bounds(pattern=DIGEST_PATTERN)]

_READ_SIZE_BYTES = 1 << 20


class ModelRef(tuple[ModelName, int]):
    """A model and one of its versions, written `name:version`."""

    __slots__ = ()

    def __new__(cls, name: ModelName, version: int) -> ModelRef:
        return super().__new__(cls, (name, version))

    @property
    def name(self) -> ModelName:
        return self[0]

    @property
    def version(self) -> int:
        return self[1]

    def __str__(self) -> str:
        return f"{self.name}:{self.version}"


def parse_device_id(text: str) -> DeviceId:
    """Return `text` as a device id.

    Raises:
        Rejected: when it is not 1 to 64 lower-case letters, digits and hyphens, or is the server's own name.
    """
    if re.fullmatch(DEVICE_ID_PATTERN[1:-1], text) is None:
        raise Rejected(f"device id {text[:80]!r} is not valid: use 1 to 64 of a-z, 0-9 and '-'")
    if text == SERVER_IDENTITY:
        raise Rejected(f"device id {text!r} is kept for the server: choose another")
    return DeviceId(text)


def parse_model_name(text: str) -> ModelName:
    """Return `text` as a model name.

    Raises:
        Rejected: when it is not 1 to 64 of a-z, 0-9, '.', '_' and '-', beginning with a letter or digit.
    """
    if re.fullmatch(MODEL_NAME_PATTERN[1:-1], text) is None:
        raise Rejected(
            f"model name {text[:80]!r} is not valid: use 1 to 64 of a-z, 0-9, '.', '_' and '-', "
            "beginning with a letter or digit"
        )
    return ModelName(text)


def parse_model_ref(text: str) -> ModelRef:
    """Return `name:version` as a reference.

    Raises:
        Rejected: when the version is missing or no positive number.
    """
    name, colon, version = text.partition(":")
    if not colon or not version.isascii() or not version.isdigit() or not 0 < int(version) < 2**31:
        raise Rejected(f"{text[:120]!r} names no model version: write NAME:VERSION, for example digits:1")
    return ModelRef(parse_model_name(name), int(version))


def digest_of_bytes(data: bytes) -> Digest:
    """Return the SHA-256 of `data`."""
    return Digest(hashlib.sha256(data).hexdigest())


def digest_of_file(path: Path) -> Digest:
    """Return the SHA-256 of the file, read piece by piece.

    Raises:
        OSError: when the file cannot be read.
    """
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_READ_SIZE_BYTES):
            sha256.update(piece)
    return Digest(sha256.hexdigest())
