"""The identity folder: complete and readable, mended from its second copy, or a sentence that says what to do."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from killing import every_kill, killed_at
from regatta_protocol.errors import Exhausted, Misuse
from regatta_protocol.ids import DeviceId
from regatta_provisioning.authority import Authority
from regatta_provisioning.identity import (
    IDENTITY_FILE,
    Identity,
    IdentityFile,
    damaged_files,
    load_identity,
    mend_identity,
    put_identity,
    replace_certificate,
)
from regatta_provisioning.keys import make_csr, write_private_key
from regatta_provisioning.sealed import SEALED_FILE, read_sealed

WHOLE: dict[str, str] = {
    "fleet": "lab",
    "device": "pi-1",
    "broker_host": "fleet.example",
    "broker_port": "8883",
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
        (path / WHOLE[name]).touch()
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


@dataclass(frozen=True)
class Enrolled:
    """An identity folder as enrolment leaves it, and what every file of it holds."""

    folder: Path
    files: dict[str, bytes]
    identity: Identity

    def differs(self) -> list[str]:
        """Return the files that are not what they were."""
        found = {path.name: path.read_bytes() for path in self.folder.iterdir() if path.is_file()}
        return sorted(name for name in {*found, *self.files} if found.get(name) != self.files.get(name))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Enrolled:
    folder = tmp_path_factory.mktemp("identity")
    authority = Authority.create(tmp_path_factory.mktemp("authority"), "lab")
    key = ec.generate_private_key(ec.SECP256R1())
    write_private_key(folder / WHOLE["key"], key)
    parts = {
        WHOLE["certificate"]: authority.sign_device_csr(make_csr(key, "pi-1"), DeviceId("pi-1")).encode(),
        WHOLE["ca"]: authority.ca_pem.encode(),
        WHOLE["root"]: b'{"signed": {}, "signatures": []}',
    }
    identity = put_identity(folder, IdentityFile.model_validate(WHOLE), parts)
    return Enrolled(folder, {path.name: path.read_bytes() for path in folder.iterdir()}, identity)


@pytest.fixture
def enrolled(whole: Enrolled, tmp_path: Path) -> Enrolled:
    folder = tmp_path / "identity"
    shutil.copytree(whole.folder, folder)
    return Enrolled(folder, whole.files, load_identity(folder))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "gone": Path.unlink,
    "emptied": lambda path: path.write_bytes(b""),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "one bit": lambda path: path.write_bytes(_flipped(path.read_bytes(), path.stat().st_size // 2)),
    "another's": lambda path: path.write_bytes(b"x" * 100_000),
}
FILES = (IDENTITY_FILE, SEALED_FILE, *(WHOLE[part] for part in ("key", "certificate", "ca", "root")))


def _flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_any_damaged_file_is_mended(enrolled: Enrolled, name: str, damage: str) -> None:
    """Whichever it is, and also where it could still be read: the same device as before, and every byte in place."""
    DAMAGES[damage](enrolled.folder / name)

    assert load_identity(enrolled.folder) == enrolled.identity
    assert damaged_files(enrolled.folder) == (name,)
    assert mend_identity(enrolled.folder) == enrolled.identity
    assert enrolled.differs() == []
    assert {path.stat().st_mode & 0o777 for path in enrolled.folder.iterdir()} == {0o600}


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(FILES), st.sampled_from(sorted(DAMAGES)), min_size=1))
def test_whatever_is_damaged_together_nothing_is_made_up(
    whole: Enrolled, tmp_path_factory: pytest.TempPathFactory, damages: dict[str, str]
) -> None:
    """With the sealed file whole, or all others, all is as it was; else it says how to enrol, and deletes nothing."""
    folder = tmp_path_factory.mktemp("damaged") / "identity"
    shutil.copytree(whole.folder, folder)
    enrolled = Enrolled(folder, whole.files, whole.identity)
    for name, damage in damages.items():
        DAMAGES[damage](folder / name)
    left = {path.name: path.read_bytes() for path in folder.iterdir()}

    try:
        mend_identity(folder)
    except Misuse as err:
        assert "regatta-agent enroll TOKEN" in str(err)
        assert SEALED_FILE in damages and set(damages) != {SEALED_FILE}
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == left
        return
    if SEALED_FILE not in damages or len(damages) == 1:
        assert enrolled.differs() == []


def test_what_cannot_be_written_is_no_reason_to_fail(
    enrolled: Enrolled, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk: the device knows who it is, and says what it could not mend."""

    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (enrolled.folder / IDENTITY_FILE).write_bytes(b"")
    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        identity = mend_identity(enrolled.folder)

    assert identity.device == "pi-1"
    assert "event=identity_not_mended file=identity.json" in caplog.text
    mend_identity(enrolled.folder)
    assert enrolled.differs() == []


def test_want_of_descriptors_is_no_damage(enrolled: Enrolled, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sealed file is not made anew from files that may be the damaged ones."""

    def none_left(*_arguments: object, **_more: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("pathlib.Path.open", none_left)

    with pytest.raises(Exhausted):
        mend_identity(enrolled.folder)


def test_a_folder_of_an_older_agent_is_sealed(enrolled: Enrolled) -> None:
    """And not when its files do not belong together: that would keep the damage."""
    (enrolled.folder / SEALED_FILE).unlink()
    certificate = enrolled.identity.certificate_path
    pem = certificate.read_bytes()
    certificate.write_bytes(pem[:-200])
    mend_identity(enrolled.folder)
    assert not (enrolled.folder / SEALED_FILE).exists()

    certificate.write_bytes(pem)
    mend_identity(enrolled.folder)
    assert enrolled.differs() == []


def test_a_renewed_certificate_is_kept_twice_whenever_it_is_killed(enrolled: Enrolled, tmp_path: Path) -> None:
    """Before, between and after: a start finds the old one or the new one, and both places agree."""
    old = enrolled.identity.certificate_path.read_bytes()
    fresh = old + b"# another\n"

    def run(point: int) -> None:
        folder = tmp_path / str(point)
        shutil.copytree(enrolled.folder, folder)
        try:
            with killed_at(point):
                replace_certificate(folder, fresh)
        finally:
            identity = mend_identity(folder)
            found = identity.certificate_path.read_bytes()
            sealed = read_sealed(folder)
            assert sealed is not None and sealed[WHOLE["certificate"]] == found
            assert found in (old, fresh)

    assert every_kill(run) == 4
