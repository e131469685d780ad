"""Signed assignments: what a device shall run, said by the fleet's online key (Ed25519, RFC 8032).

The signature covers the exact bytes of `payload`, which are parsed only after they verified. An assignment can choose
only among manifests that the metadata's keys have signed (repository.py): both must agree before anything is
installed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from regatta_protocol.codec import decode, encode
from regatta_protocol.errors import Misuse, Rejected, Untrusted
from regatta_protocol.ids import DeviceId
from regatta_protocol.messages import Assignment, SignedAssignment
from regatta_provisioning.keys import make_private_folder, read_ed25519_key, write_private_key

__all__ = ["AssignmentKey", "assignment_key_id", "verify_assignment"]

_FILE = "assignment.pem"
_MAX_PAYLOAD_CHARS = 48_000  # as SignedAssignment.payload


def assignment_key_id(public_key: bytes) -> str:
    """Return the name of an Ed25519 public key (32 raw bytes): the first 16 hex digits of its SHA-256."""
    return hashlib.sha256(public_key).hexdigest()[:16]


class AssignmentKey:
    """The fleet's online key for assignments."""

    def __init__(self, private_key: Ed25519PrivateKey) -> None:
        self._private_key = private_key

    @classmethod
    def create(cls, folder: Path) -> AssignmentKey:
        """Return the key in `folder`, made new where there is none."""
        path = folder / _FILE
        if not path.exists():
            make_private_folder(folder)
            write_private_key(path, Ed25519PrivateKey.generate())
        return cls.load(folder)

    @classmethod
    def load(cls, folder: Path) -> AssignmentKey:
        """Return the key in `folder`.

        Raises:
            Misuse: when it is missing or damaged.
        """
        return cls(read_ed25519_key(folder / _FILE))

    @property
    def public_key_b64(self) -> str:
        """The public key, 32 raw bytes in base64."""
        return base64.b64encode(self._public_bytes).decode()

    @property
    def key_id(self) -> str:
        return assignment_key_id(self._public_bytes)

    def sign(self, assignment: Assignment) -> SignedAssignment:
        """Return the assignment with its signature.

        Raises:
            TooLarge: when it does not fit a message.
        """
        payload = encode(assignment, _MAX_PAYLOAD_CHARS)
        signature = base64.b64encode(self._private_key.sign(payload)).decode()
        return SignedAssignment(payload=payload.decode(), key_id=self.key_id, signature=signature)

    @property
    def _public_bytes(self) -> bytes:
        return self._private_key.public_key().public_bytes_raw()


def verify_assignment(
    signed: SignedAssignment, public_key_b64: str, key_id: str, fleet: str, device: DeviceId
) -> Assignment:
    """Return the assignment, when the fleet signed it for this device.

    Raises:
        Untrusted: when another key signed it, it was changed, or it is for another fleet or device.
        Misuse: when `public_key_b64` itself is no key.
    """
    if not hmac.compare_digest(signed.key_id.encode(), key_id.encode()):
        raise Untrusted(
            f"the assignment is signed by key {signed.key_id[:64]!r}, this device pinned {key_id!r}: "
            "it is another fleet's, or the fleet has a new key and the device must enrol again"
        )
    try:
        public_key = Ed25519PublicKey.from_public_bytes(base64.b64decode(public_key_b64, validate=True))
    except ValueError as err:
        raise Misuse(f"the pinned assignment key is damaged ({err}): enrol this device again") from err
    try:
        public_key.verify(base64.b64decode(signed.signature, validate=True), signed.payload.encode())
    except (InvalidSignature, binascii.Error, ValueError) as err:
        raise Untrusted(
            f"the assignment's signature by key {key_id} does not match: it was changed on its way"
        ) from err
    try:
        assignment = decode(Assignment, signed.payload.encode())
    except Rejected as err:
        raise Untrusted(f"the assignment is signed but not understood ({err}): is the agent too old?") from err
    if assignment.fleet != fleet:
        raise Untrusted(f"the assignment is of fleet {assignment.fleet[:64]!r}, this device belongs to {fleet!r}")
    if assignment.device != device:
        raise Untrusted(f"the assignment is for device {assignment.device!r}, this is {device!r}")
    return assignment
