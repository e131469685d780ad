"""Who this device is: the folder that enrolment leaves, and the only reader of it.

`identity.json` names every other file and is written last, so a folder without it is not enrolled, whatever else
lies there. Nothing here imports cryptography: the control process loads its identity with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from regatta_protocol.codec import decode
from regatta_protocol.durable import read_bounded
from regatta_protocol.errors import Misuse, Rejected
from regatta_protocol.ids import DeviceId, DeviceIdField
from regatta_protocol.wire import Wire

__all__ = ["IDENTITY_FILE", "Identity", "IdentityFile", "load_identity"]

IDENTITY_FILE = "identity.json"
_MAX_BYTES = 65_536
_FILE_NAME = r"^[A-Za-z0-9][A-Za-z0-9.-]{0,99}$"  # a name in the folder, never a path out of it
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
    key: str = Field(pattern=_FILE_NAME)
    certificate: str = Field(pattern=_FILE_NAME)
    ca: str = Field(pattern=_FILE_NAME)
    root: str = Field(pattern=_FILE_NAME)


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


def load_identity(folder: Path) -> Identity:
    """Return the device's identity.

    Raises:
        Misuse: when the device is not enrolled, or its identity is damaged or not readable for this user.
    """
    path = folder / IDENTITY_FILE
    try:
        file = decode(IdentityFile, read_bounded(path, _MAX_BYTES))
    except (FileNotFoundError, NotADirectoryError) as err:
        raise Misuse(f"not enrolled: there is no {path}; {_ENROLL}") from err
    except PermissionError as err:
        raise Misuse(f"{path} is not readable for this user: run this as the user of the service, or as root") from err
    except Rejected as err:
        raise Misuse(f"the identity in {path} is damaged ({err}): {_ENROLL}, adding --force") from err
    identity = Identity(
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
    for part in (identity.key_path, identity.certificate_path, identity.ca_path, identity.root_path):
        if not part.is_file():
            raise Misuse(f"the identity in {folder} is damaged: {part.name} is missing; {_ENROLL}, adding --force")
    return identity
