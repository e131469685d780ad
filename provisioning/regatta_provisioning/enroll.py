"""Enrolment, device side: from a token to an identity folder.

    CA, unverified -> compare its fingerprint with the token's -> CSR to the fleet, verified by that CA -> files

Rules:
- The key is made here and never leaves. It is kept under a name that follows from the token, so the same token goes
  on with the same key after a kill, and the fleet answers the same key again.
- The identity takes its place in one step (identity.py). Until then the device is not enrolled, or (with `force`) still
  is what it was; leftovers of other tries are removed only afterwards.
- What goes over the network goes by asking.py: https only, bounded.
- Run by root for a service, files belong to the owner of the state folder, not to root.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root

from regatta_protocol.codec import decode, encode
from regatta_protocol.durable import sync_folder
from regatta_protocol.errors import Misuse, Rejected, Retryable, Untrusted
from regatta_protocol.ids import DeviceId
from regatta_protocol.measurement import BoardFacts
from regatta_provisioning.asking import believing, call, refusal
from regatta_provisioning.enrollment import CA_PATH, ENROLL_PATH, MAX_ENROLL_BYTES, EnrollRequest, EnrollResponse
from regatta_provisioning.identity import Identity, IdentityFile, is_enrolled, load_identity, put_identity
from regatta_provisioning.keys import make_csr, make_private_folder, read_ec_key, write_private_key
from regatta_provisioning.ownership import as_owner_of
from regatta_provisioning.tokens import EnrollmentToken, parse_token, token_hash

__all__ = ["enroll"]

logger = logging.getLogger(__name__)

_PARTS = ("key-*.pem", "certificate-*.pem", "ca-*.pem", "root-*.json")
_NEW_TOKEN = "make a new one with `regatta device token`"  # noqa: S105  advice, not a secret


def enroll(
    token: str,
    folder: Path,
    *,
    device: DeviceId | None,
    board: BoardFacts,
    timeout_s: float = 30.0,
    force: bool = False,
) -> Identity:
    """Return the identity that the fleet gave this device, after storing it in `folder`.

    Args:
        token: As `regatta device token` printed it.
        folder: The identity folder, `<state dir>/identity`; made where it is missing.
        device: The id that the operator wants; None lets the token or the fleet choose.
        board: What the device is, for the fleet's list.
        timeout_s: For each of the two requests, from connecting to the last byte.
        force: Replace an identity that is there already.

    Raises:
        Rejected: when the token is damaged, used or expired, or the fleet refuses the device.
        Untrusted: when the server is not the fleet that made the token.
        Retryable: when the server cannot be reached or is busy, or the disk is full.
        Misuse: when the device is enrolled already and `force` is not set.
    """
    parsed = parse_token(token)
    if is_enrolled(folder) and not force:
        raise _already_enrolled(folder)
    try:
        with as_owner_of(folder.parent):
            identity = _enroll(parsed, folder, device, board, timeout_s)
    except OSError as err:
        raise Misuse(f"the identity cannot be kept in {folder}: {err}; run this as root or as its owner") from err
    logger.info("event=enrolled fleet=%s device=%s broker=%s", identity.fleet, identity.device, identity.broker_host)
    return identity


def _enroll(
    parsed: EnrollmentToken, folder: Path, device: DeviceId | None, board: BoardFacts, timeout_s: float
) -> Identity:
    make_private_folder(folder)
    stem = token_hash(parsed.secret)[:16]  # of 192 random bits: tells nothing about them
    key = _kept_key(folder / f"key-{stem}.pem")
    ca_pem = _fetch_ca(parsed, timeout_s)
    request = EnrollRequest(secret=parsed.secret, device=device, csr_pem=make_csr(key, device), board=board)
    response = _ask(parsed, ca_pem, request, timeout_s)
    _check(response, parsed, key, device)
    return _store(folder, stem, parsed, response)


def _already_enrolled(folder: Path) -> Misuse:
    try:
        identity = load_identity(folder)
    except Misuse as err:
        return err
    return Misuse(
        f"this device is already enrolled, as {identity.device} of fleet {identity.fleet!r}: "
        "add --force to replace that identity"
    )


def _kept_key(path: Path) -> ec.EllipticCurvePrivateKey:
    if not path.exists():
        write_private_key(path, ec.generate_private_key(ec.SECP256R1()))
    return read_ec_key(path)


def _fetch_ca(token: EnrollmentToken, timeout_s: float) -> str:
    """Return the fleet's CA (PEM), believed because its fingerprint is the token's."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the fingerprint below decides; nothing secret is sent on this connection
    status, body = call(token.api_url, "GET", CA_PATH, None, context, timeout_s)
    try:
        certificate = x509.load_pem_x509_certificate(body)
    except ValueError as err:
        raise Retryable(
            f"{token.api_url} answered with status {status} and no certificate: something between may have answered "
            "in its place (a captive portal, a proxy), or it is no Regatta server; open the network and try again"
        ) from err
    der = certificate.public_bytes(serialization.Encoding.DER)
    fingerprint = hashlib.sha256(der).hexdigest()
    if not hmac.compare_digest(fingerprint, token.ca_fingerprint):
        raise Untrusted(
            f"{token.api_url} is not the fleet that made this token: its CA has the fingerprint {fingerprint[:16]}…, "
            f"the token says {token.ca_fingerprint[:16]}…; nothing was sent. Check the address, or {_NEW_TOKEN}"
        )
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _ask(token: EnrollmentToken, ca_pem: str, request: EnrollRequest, timeout_s: float) -> EnrollResponse:
    context = believing(ca_pem)
    try:
        status, body = call(token.api_url, "POST", ENROLL_PATH, encode(request), context, timeout_s)
    except Retryable as err:
        raise Retryable(f"{err}. Run the same command again; the token stays good until it expires") from err
    if status not in (200, 201):
        raise refusal(token.api_url, status, body, "enrol")
    try:
        return decode(EnrollResponse, body, MAX_ENROLL_BYTES)
    except Rejected as err:
        raise Rejected(f"{token.api_url} enrols in a way that this agent does not know ({err}): update it") from err


def _check(
    response: EnrollResponse, token: EnrollmentToken, key: ec.EllipticCurvePrivateKey, device: DeviceId | None
) -> None:
    """Raise when what the fleet gave would not work later, or is not what was asked for.

    Raises:
        Rejected: saying which part is wrong.
    """
    wrong = f"{token.api_url} answered, but "
    try:
        ca = x509.load_pem_x509_certificate(response.ca_pem.encode())
        certificate = x509.load_pem_x509_certificate(response.certificate_pem.encode())
        certificate.verify_directly_issued_by(ca)
        root = Metadata[Root].from_bytes(response.root_json.encode())
        root.signed.verify_delegate(Root.type, root.signed_bytes, root.signatures)
        assignment_key = base64.b64decode(response.assignment_key, validate=True)
    except (ValueError, TypeError, InvalidSignature, RepositoryError) as err:
        raise Rejected(f"{wrong}with a damaged certificate, root or key ({type(err).__name__}: {err})") from err
    names = [str(name.value) for name in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    fingerprint = hashlib.sha256(ca.public_bytes(serialization.Encoding.DER)).hexdigest()
    if not hmac.compare_digest(fingerprint, token.ca_fingerprint):
        raise Untrusted(f"{wrong}with another CA than the one of the token")
    if certificate.public_key() != key.public_key():
        raise Rejected(f"{wrong}with a certificate for another key: {_NEW_TOKEN}")
    if names != [response.device]:
        raise Rejected(f"{wrong}with a certificate for {names}, not for {response.device}")
    if device is not None and response.device != device:
        raise Rejected(f"{wrong}it enrolled {response.device} where {device} was asked for")
    if len(assignment_key) != 32:
        raise Rejected(f"{wrong}with an assignment key of {len(assignment_key)} bytes instead of 32")


def _store(folder: Path, stem: str, token: EnrollmentToken, response: EnrollResponse) -> Identity:
    file = IdentityFile(
        fleet=response.fleet,
        device=response.device,
        broker_host=response.broker_host,
        broker_port=response.broker_port,
        api_url=token.api_url,
        assignment_key=response.assignment_key,
        assignment_key_id=response.assignment_key_id,
        key=f"key-{stem}.pem",
        certificate=f"certificate-{stem}.pem",
        ca=f"ca-{stem}.pem",
        root=f"root-{stem}.json",
    )
    parts = {file.certificate: response.certificate_pem, file.ca: response.ca_pem, file.root: response.root_json}
    identity = put_identity(folder, file, {name: text.encode() for name, text in parts.items()})
    _remove_leftovers(folder, stem)
    return identity


def _remove_leftovers(folder: Path, stem: str) -> None:
    """Remove keys and files of the identity before and of tries that did not end."""
    old = [path for pattern in _PARTS for path in folder.glob(pattern) if path.stem.partition("-")[2] != stem]
    for path in old:
        path.unlink(missing_ok=True)
    if old:
        sync_folder(folder)
