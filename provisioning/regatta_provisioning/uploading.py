"""What a device and its fleet say to each other while the output of a batch job is sent, and the device's side of it.

The device shows that it holds the key of its certificate, as when it renews that, and offers a file by its length and
digest: `POST {url}/api/v1/results`. The answer is a *ticket* for this one file, and how much of it the fleet has
already. The rest goes in pieces, `PUT {url}/api/v1/results/{ticket}?offset=N`. With the last one the fleet checks the
digest, and has it on its disk when it answers. Whatever is cut off begins again with an offer, and goes on where the
fleet's part ends; a file that the fleet has whole costs the offer alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO

from pydantic import Field

from regatta_protocol.codec import decode, encode
from regatta_protocol.durable import read_bounded
from regatta_protocol.errors import Rejected, Retryable
from regatta_protocol.ids import Digest, DigestField
from regatta_protocol.traffic import Amount
from regatta_protocol.wire import Wire
from regatta_provisioning.asking import Conversation, believing, refusal
from regatta_provisioning.enrollment import MAX_ENROLL_BYTES
from regatta_provisioning.identity import Identity
from regatta_provisioning.keys import make_csr, read_ec_key

__all__ = ["PIECE_BYTES", "RESULTS_PATH", "ResultsOffer", "ResultsTicket", "send_results"]

RESULTS_PATH = "/api/v1/results"
PIECE_BYTES = MAX_ENROLL_BYTES  # the limit of every body to the device API
_MAX_PEM_BYTES = 16_384
_TIMEOUT_S = 60.0  # of one piece: 17 kbit/s are enough
_BEGIN_AGAIN = (404, 409, 410)  # the ticket is not known any more, as after a restart, or another took its place


class ResultsOffer(Wire):
    """Offers the output of a batch job; the CSR proves that the sender holds the certificate's key."""

    schema_version: int = 1
    certificate_pem: str = Field(max_length=_MAX_PEM_BYTES)
    csr_pem: str = Field(max_length=_MAX_PEM_BYTES)
    batch: str = Field(min_length=1, max_length=64)
    size_bytes: int = Field(ge=0, lt=2**53)
    digest: DigestField


class ResultsTicket(Wire):
    """Answers an offer and each piece."""

    schema_version: int = 1
    ticket: str = Field(max_length=128, repr=False)
    offset: int = Field(ge=0)  # bytes that the fleet has; all of them: it is done


def send_results(
    identity: Identity, batch: str, file: BinaryIO, size_bytes: int, digest: Digest, tell: Callable[[int, Amount], None]
) -> None:
    """Send what the fleet does not have yet; when this returns, it has checked and kept the whole.

    Args:
        identity: the device's.
        batch: the job's id.
        file: can be sought.
        size_bytes: of the file.
        digest: of all of it.
        tell: called with each answer: how many bytes the fleet has, and what was spent on the wire since the last time.

    Raises:
        Retryable: when the server cannot be reached, is busy or full, or the upload must begin again.
        Rejected: when the fleet does not want it, or found another digest.
        Untrusted: when the server does not prove to be the fleet's.
        Misuse: when the identity is damaged.
        OSError: when the file cannot be read.
    """
    certificate_pem = read_bounded(identity.certificate_path, _MAX_PEM_BYTES).decode()
    ca_pem = read_bounded(identity.ca_path, _MAX_PEM_BYTES).decode()
    offer = ResultsOffer(
        certificate_pem=certificate_pem,
        csr_pem=make_csr(read_ec_key(identity.key_path), identity.device),
        batch=batch,
        size_bytes=size_bytes,
        digest=digest,
    )
    with Conversation(identity.api_url, believing(ca_pem), _TIMEOUT_S) as conversation:

        def ask(method: str, path: str, body: bytes, content_type: str) -> ResultsTicket:
            status, answer = conversation.ask(method, path, body, content_type)
            if status in _BEGIN_AGAIN and method == "PUT":
                raise Retryable(f"the upload of {batch} was interrupted at the server: it begins again")
            if status != 200:
                raise refusal(identity.api_url, status, answer, f"take the results of {batch} from")
            said = decode(ResultsTicket, answer, MAX_ENROLL_BYTES)
            tell(said.offset, conversation.spent())
            return said

        have = ask("POST", RESULTS_PATH, encode(offer), "application/json")
        while have.offset < size_bytes:
            file.seek(have.offset)
            piece = file.read(min(PIECE_BYTES, size_bytes - have.offset))
            if not piece:
                raise Rejected(f"the output of {batch} became shorter while it was sent")
            path = f"{RESULTS_PATH}/{have.ticket}?offset={have.offset}"
            after = ask("PUT", path, piece, "application/octet-stream")
            if after.offset <= have.offset:
                raise Retryable(f"the server took nothing of the results of {batch}: it is tried again")
            have = after
