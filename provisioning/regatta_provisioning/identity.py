"""Who this device is: the folder that enrolment leaves, the only reader of it, and what mends it.

`identity.json` names the other files: the key, its certificate, the fleet's CA and the pinned root. All of them are
kept a second time in `identity.sealed` (sealed.py), so that no single damaged file costs the device its name.

Rules:
- The sealed file is written before those that it holds; when it is whole, it is right.
- Whoever only looks (`load_identity`) writes nothing. The agent's start and each renewal mend (`mend_identity`).
- A folder with neither `identity.json` nor `identity.sealed` is not enrolled, whatever else lies there.
- Nothing here imports cryptography: the control process loads its identity with it.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from regatta_protocol.codec import decode, encode
from regatta_protocol.durable import read_bounded, read_patiently, shortage_of, write_durably
from regatta_protocol.errors import Misuse, RegattaError, Rejected, TooNew
from regatta_protocol.ids import DeviceId, DeviceIdField
from regatta_protocol.wire import Wire
from regatta_provisioning.sealed import FILE_NAME, SEALED_FILE, read_sealed, write_sealed

__all__ = [
    "IDENTITY_FILE",
    "Identity",
    "IdentityFile",
    "damaged_files",
    "is_enrolled",
    "load_identity",
    "mend_identity",
    "put_identity",
    "replace_certificate",
]

logger = logging.getLogger(__name__)

IDENTITY_FILE = "identity.json"
_MAX_BYTES = 65_536  # of any file in the folder: the root is the largest, 2-10 kB
_ENROLL = "run `regatta-agent enroll TOKEN` with a token from `regatta device token`"


class IdentityFile(Wire):
    """`identity.json`."""

    schema_version: int = 1
    fleet: str
    device: DeviceIdField
    broker_host: str
    broker_port: int = Field(ge=1, le=65_535)
    api_url: str
    assignment_key: str
    assignment_key_id: str
    key: str = Field(pattern=FILE_NAME)
    certificate: str = Field(pattern=FILE_NAME)
    ca: str = Field(pattern=FILE_NAME)
    root: str = Field(pattern=FILE_NAME)

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the files that belong to it."""
        return self.key, self.certificate, self.ca, self.root


class _Root(Wire):
    """The shape of the pinned root; the verifier looks at what it says."""

    signed: dict[str, object]
    signatures: tuple[object, ...]


@dataclass(frozen=True)
class Identity:
    fleet: str
    device: DeviceId
    broker_host: str
    broker_port: int
    api_url: str
    key_path: Path  # PKCS#8 PEM; never leaves the device
    certificate_path: Path  # PEM, common name = device
    ca_path: Path  # PEM of the fleet's CA: the only one that the device believes
    root_path: Path  # the root of signed metadata, as pinned at enrolment
    assignment_key: str  # Ed25519 public key, raw, base64
    assignment_key_id: str


def is_enrolled(folder: Path) -> bool:
    """Return whether there is an identity in the folder, whole or damaged."""
    return (folder / IDENTITY_FILE).exists() or (folder / SEALED_FILE).exists()


def load_identity(folder: Path) -> Identity:
    """Return the device's identity, also when some of its files wait to be mended.

    Raises:
        Misuse: when the device is not enrolled, or the identity is damaged beyond mending or not for this user to read.
        Exhausted: when it cannot be opened for want of descriptors or memory.
    """
    sealed = read_sealed(folder)
    if sealed is not None:
        return _identity(folder, _parsed(folder, sealed.get(IDENTITY_FILE, b"")))
    return _unsealed(folder)


def damaged_files(folder: Path) -> tuple[str, ...]:
    """Return the names of the files that `mend_identity` would restore.

    Raises:
        Exhausted: as `load_identity`.
    """
    sealed = read_sealed(folder)
    if sealed is None:
        return (SEALED_FILE,)
    return tuple(name for name, content in sealed.items() if not _holds(folder / name, content))


def mend_identity(folder: Path) -> Identity:
    """Return the device's identity, after restoring each of its files that is damaged or gone.

    What cannot be written now (a full disk, a folder that takes nothing) is told in the log, and is no reason to fail.

    Raises:
        Misuse, Exhausted: as `load_identity`.
    """
    sealed = read_sealed(folder)
    if sealed is None:
        identity = _unsealed(folder)
        _seal_again(folder, identity)
        return identity
    for name, content in sealed.items():
        _restore(folder / name, content)
    return load_identity(folder)


def put_identity(folder: Path, file: IdentityFile, parts: Mapping[str, bytes]) -> Identity:
    """Put a new identity in place of what was there. A kill at any moment leaves the one before, or this one.

    Args:
        folder: where the key lies already.
        file: what it shall be.
        parts: the content of the other files that it names, under names that the one before does not use.

    Raises:
        StorageFull, OSError: when it cannot be written.
    """
    for name, content in parts.items():
        write_durably(folder / name, content)
    content = encode(file)
    key = read_bounded(folder / file.key, _MAX_BYTES)
    write_sealed(folder, {IDENTITY_FILE: content, file.key: key, **parts})
    write_durably(folder / IDENTITY_FILE, content)
    return load_identity(folder)


def replace_certificate(folder: Path, pem: bytes) -> None:
    """Put a renewed certificate in place of the one before. A kill at any moment leaves a certificate that is good.

    Raises:
        StorageFull, OSError: when it cannot be written.
        Misuse: as `load_identity`.
    """
    sealed = read_sealed(folder)
    files = sealed if sealed is not None else _files(folder)
    name = _parsed(folder, files[IDENTITY_FILE]).certificate
    write_sealed(folder, {**files, name: pem})
    write_durably(folder / name, pem)


def _unsealed(folder: Path) -> Identity:
    """Return what the folder says without its sealed file."""
    path = folder / IDENTITY_FILE
    try:
        file = _parsed(folder, read_patiently(path, _MAX_BYTES))
    except (FileNotFoundError, NotADirectoryError) as err:
        if not is_enrolled(folder):
            raise Misuse(f"not enrolled: there is no {path}; {_ENROLL}") from err
        raise _beyond_mending(folder, f"{IDENTITY_FILE} is missing") from err
    except PermissionError as err:
        raise Misuse(f"{path} is not readable for this user: run this as the user of the service, or as root") from err
    except Rejected as err:
        raise _beyond_mending(folder, str(err)) from err
    except OSError as err:
        raise shortage_of(err, str(path)) or _beyond_mending(folder, str(err)) from err
    for name in file.parts:
        if not (folder / name).is_file():
            raise _beyond_mending(folder, f"{name} is missing")
    return _identity(folder, file)


def _parsed(folder: Path, content: bytes) -> IdentityFile:
    try:
        return decode(IdentityFile, content, _MAX_BYTES)
    except TooNew as err:
        raise Misuse(f"the identity in {folder} was written by a newer agent ({err})") from err
    except Rejected as err:
        raise _beyond_mending(folder, str(err)) from err


def _beyond_mending(folder: Path, why: str) -> Misuse:
    return Misuse(
        f"the identity in {folder} is damaged ({why}), and {SEALED_FILE} beside it is damaged or missing: run "
        "`regatta-agent enroll TOKEN --force` with a token from `regatta device token --device NAME`, the name it had"
    )


def _identity(folder: Path, file: IdentityFile) -> Identity:
    return Identity(
        fleet=file.fleet,
        device=file.device,
        broker_host=file.broker_host,
        broker_port=file.broker_port,
        api_url=file.api_url,
        key_path=folder / file.key,
        certificate_path=folder / file.certificate,
        ca_path=folder / file.ca,
        root_path=folder / file.root,
        assignment_key=file.assignment_key,
        assignment_key_id=file.assignment_key_id,
    )


def _files(folder: Path) -> dict[str, bytes]:
    content = read_bounded(folder / IDENTITY_FILE, _MAX_BYTES)
    parts = _parsed(folder, content).parts
    return {IDENTITY_FILE: content, **{name: read_bounded(folder / name, _MAX_BYTES) for name in parts}}


def _seal_again(folder: Path, identity: Identity) -> None:
    """Make the sealed file, unless another file is damaged or key and certificate are no pair: it would keep that."""
    try:
        decode(_Root, read_bounded(identity.root_path, _MAX_BYTES))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(identity.ca_path)
        context.load_cert_chain(identity.certificate_path, identity.key_path)
        write_sealed(folder, _files(folder))
    except (OSError, RegattaError, UnicodeDecodeError) as err:  # ssl.SSLError is an OSError
        logger.error("event=identity_not_sealed folder=%s error=%s", folder, err)
    else:
        logger.info("event=identity_sealed folder=%s", folder)


def _restore(path: Path, content: bytes) -> None:
    if _holds(path, content):
        return
    try:
        write_durably(path, content)
    except (OSError, RegattaError) as err:
        logger.error("event=identity_not_mended file=%s error=%s", path.name, err)
    else:
        logger.warning("event=identity_mended file=%s action=restored_from %s", path.name, SEALED_FILE)


def _holds(path: Path, content: bytes) -> bool:
    try:
        return read_patiently(path, _MAX_BYTES) == content
    except (OSError, Rejected):
        return False
