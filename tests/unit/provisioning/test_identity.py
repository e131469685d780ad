"""The identity folder: complete and readable, or a sentence that says what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from regatta_protocol.errors import Misuse
from regatta_provisioning.identity import load_identity

WHOLE = {
    "fleet": "lab",
    "device": "pi-1",
    "broker_host": "fleet.example",
    "broker_port": 8883,
    "api_url": "https://fleet.example:8443",
    "assignment_key": "AAAA",
    "assignment_key_id": "0011",
    "key": "key-1.pem",
    "certificate": "certificate-1.pem",
    "ca": "ca-1.pem",
    "root": "root-1.json",
}


def _folder(path: Path, **changes: object) -> Path:
    file = {**WHOLE, **changes}
    for name in ("key", "certificate", "ca", "root"):
        (path / str(WHOLE[name])).touch()
    (path / "identity.json").write_text(json.dumps(file))
    return path


def test_an_identity_is_read(tmp_path: Path) -> None:
    identity = load_identity(_folder(tmp_path, written_by="a newer agent"))

    assert identity.device == "pi-1"
    assert identity.key_path == tmp_path / "key-1.pem"


def test_no_identity_says_how_to_enrol(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match=r"^not enrolled: .*regatta-agent enroll TOKEN"):
        load_identity(tmp_path)
    with pytest.raises(Misuse, match="not enrolled"):
        load_identity(tmp_path / "nowhere" / "identity")


@pytest.mark.parametrize("junk", [b"", b"\0" * 300, b"{}", b"[1", b"\xff\xfe"])
def test_a_damaged_identity_says_so(tmp_path: Path, junk: bytes) -> None:
    (_folder(tmp_path) / "identity.json").write_bytes(junk)

    with pytest.raises(Misuse, match=r"damaged .*--force"):
        load_identity(tmp_path)


@pytest.mark.parametrize("name", ["../key.pem", "/etc/passwd", "", ".hidden"])
def test_no_file_outside_of_the_folder_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(Misuse, match="damaged"):
        load_identity(_folder(tmp_path, key=name))


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    (_folder(tmp_path) / "ca-1.pem").unlink()

    with pytest.raises(Misuse, match=r"ca-1\.pem is missing"):
        load_identity(tmp_path)
