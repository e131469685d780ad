"""What a device and its fleet say to each other while the device enrols: `POST {url}/api/v1/enroll`.

Before it, the device takes the CA's certificate (PEM) from `GET {url}/api/v1/ca` and compares its fingerprint with
the token's. A server answers the same secret with the same public key again, so that a device whose answer was lost
can repeat the call; another key for a used secret is refused. Refusals carry `Refusal` with a status of 4xx.

Later the device asks `POST {url}/api/v1/renew` for its next certificate, over the same HTTPS and not over MQTT: a
device that was off for longer than its certificate lasted may still renew it, unless it was revoked.
"""

from __future__ import annotations

from pydantic import Field

from regatta_protocol.ids import DeviceIdField
from regatta_protocol.measurement import BoardFacts
from regatta_protocol.wire import Wire
from regatta_provisioning.tokens import SECRET_PATTERN

__all__ = [
    "CA_PATH",
    "ENROLL_PATH",
    "MAX_ENROLL_BYTES",
    "RENEW_PATH",
    "EnrollRequest",
    "EnrollResponse",
    "Refusal",
    "RenewRequest",
    "RenewResponse",
]

CA_PATH = "/api/v1/ca"
ENROLL_PATH = "/api/v1/enroll"
RENEW_PATH = "/api/v1/renew"
MAX_ENROLL_BYTES = 131_072  # either way; the root metadata is the largest part, 2-10 kB


class EnrollRequest(Wire):
    schema_version: int = 1
    secret: str = Field(pattern=SECRET_PATTERN, repr=False)
    device: DeviceIdField | None = None  # None: the token or the server chooses
    csr_pem: str = Field(max_length=16_384)  # its subject is empty, or the common name is `device`
    board: BoardFacts = BoardFacts()


class EnrollResponse(Wire):
    schema_version: int = 1
    fleet: str = Field(min_length=1, max_length=64)
    device: DeviceIdField
    certificate_pem: str = Field(max_length=16_384)
    ca_pem: str = Field(max_length=16_384)
    broker_host: str = Field(min_length=1, max_length=255)
    broker_port: int = Field(ge=1, le=65_535)
    root_json: str = Field(max_length=65_536)  # the signed root metadata to pin
    assignment_key: str = Field(max_length=64)  # Ed25519 public key, raw, base64
    assignment_key_id: str = Field(min_length=1, max_length=64)


class RenewRequest(Wire):
    """Asks for a new certificate for the same device and key; the CSR proves that the sender holds the key."""

    schema_version: int = 1
    certificate_pem: str = Field(max_length=16_384)  # the one that ends soon, or has ended
    csr_pem: str = Field(max_length=16_384)


class RenewResponse(Wire):
    schema_version: int = 1
    certificate_pem: str = Field(max_length=16_384)


class Refusal(Wire):
    """The body of an error answer, as of every endpoint of the fleet."""

    error: str = Field(max_length=2000)
    hint: str | None = Field(default=None, max_length=2000)
