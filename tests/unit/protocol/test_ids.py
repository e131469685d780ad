"""Names: what may be one, and nothing that could leave its topic level, file or certificate."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from regatta_protocol.errors import Rejected
from regatta_protocol.ids import (
    SERVER_IDENTITY,
    DeviceId,
    DeviceIdField,
    ModelName,
    ModelRef,
    digest_of_bytes,
    digest_of_file,
    parse_device_id,
    parse_model_name,
    parse_model_ref,
)

BAD_DEVICES = ["", "A", "a" * 65, "a/b", "a+", "#", "a b", "ä", "a\n", "../x", "a.b", "regatta-server"]
BAD_MODELS = ["", "Digits", ".digits", "-digits", "a" * 65, "a/b", "a b", "a\n", ".."]
BAD_REFS = ["digits", "digits:", "digits:0", "digits:-1", "digits:1.0", "digits:²", "digits:2147483648", ":1", "a:b:1"]


@pytest.mark.parametrize("text", ["a", "dev-1", "0", "-", "a" * 64])
def test_device_ids(text: str) -> None:
    """Lower-case letters, digits and hyphens."""
    assert parse_device_id(text) == text
    assert TypeAdapter(DeviceIdField).validate_python(text) == DeviceId(text)


@pytest.mark.parametrize("text", BAD_DEVICES)
def test_what_is_no_device_id(text: str) -> None:
    """In code and in messages alike, and the server's name is nobody else's."""
    with pytest.raises(Rejected):
        parse_device_id(text)
    with pytest.raises(ValidationError):
        TypeAdapter(DeviceIdField).validate_python(text)


def test_the_servers_name_is_told_apart() -> None:
    """A device of that name could do everything at the broker, so the reason says so."""
    with pytest.raises(Rejected, match="kept for the server"):
        parse_device_id(SERVER_IDENTITY)


@pytest.mark.parametrize("text", BAD_MODELS)
def test_what_is_no_model_name(text: str) -> None:
    """Nothing that a file system or a URL understands otherwise."""
    with pytest.raises(Rejected):
        parse_model_name(text)


def test_model_refs() -> None:
    """NAME:VERSION, there and back."""
    ref = parse_model_ref("mobilenet_v2.1-0:12")

    assert ref == ModelRef(ModelName("mobilenet_v2.1-0"), 12)
    assert (ref.name, ref.version, str(ref)) == ("mobilenet_v2.1-0", 12, "mobilenet_v2.1-0:12")


@pytest.mark.parametrize("text", BAD_REFS)
def test_what_is_no_model_ref(text: str) -> None:
    """The version is a positive number that fits 31 bits, in ASCII digits."""
    with pytest.raises(Rejected):
        parse_model_ref(text)


def test_digests(tmp_path: Path) -> None:
    """SHA-256 in lower-case hex, of bytes and of files longer than one read."""
    data = bytes(3_000_000)
    (tmp_path / "blob").write_bytes(data)

    assert digest_of_bytes(data) == digest_of_file(tmp_path / "blob") == hashlib.sha256(data).hexdigest()
    with pytest.raises(FileNotFoundError):
        digest_of_file(tmp_path / "none")
