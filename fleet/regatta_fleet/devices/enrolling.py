"""Letting devices in: one-time tokens, certificates, and taking them back.

A token is used up by the first device that shows it. The same device (the same public key) may ask again while the
token is valid and gets the same certificate, because its first answer may have been lost. A token that was made for
one device id may enrol that id anew; any other may not take an id that is there.

A device that holds its key gets its next certificate without a token, however long it was away, unless it was revoked.
Every certificate that was ever given to a device and may still be good is on record, and revoking it takes them all.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from regatta_fleet.batches import batching
from regatta_fleet.database import devices, tokens
from regatta_fleet.database.certificates import (
    Issued,
    add_certificate,
    certificates_of,
    forget_certificates,
    forget_ended,
)
from regatta_fleet.database.engine import Database
from regatta_fleet.database.events import add_event
from regatta_fleet.database.tokens import TokenRow
from regatta_fleet.errors import Conflict, Expired, Forbidden, NotFound, Unknown
from regatta_fleet.rollouts.rolling import note_revoked, welcome
from regatta_fleet.schemas import TokenRequest, TokenResponse
from regatta_protocol.errors import Rejected
from regatta_protocol.ids import DeviceId
from regatta_provisioning.authority import Holder
from regatta_provisioning.enrollment import EnrollRequest, EnrollResponse, RenewRequest, RenewResponse
from regatta_provisioning.tokens import mint_token, new_secret, token_hash

__all__ = ["Enroller", "FleetFacts", "Issuer"]

logger = logging.getLogger(__name__)

CERTIFICATE_DAYS = 90  # a device renews it when 30 are left, or whenever it is back
_MINT = "mint a new one with `regatta device token`"


class Issuer(Protocol):
    """The certificate authority (regatta_provisioning.authority.Authority)."""

    def sign_device_csr(self, csr_pem: str, device: DeviceId, valid_days: int) -> str:
        """Return the certificate (PEM) of the device."""

    def holder_of(self, certificate_pem: str, csr_pem: str) -> Holder:
        """Return whose certificate this is, when the CSR is of its key."""

    def revoke(self, serial: int) -> None:
        """Put the certificate on the revocation list."""

    def cut(self, device: DeviceId) -> None:
        """End the connection that a revoked device may still have."""


@dataclass(frozen=True)
class FleetFacts:
    """What a device pins as it enrols."""

    fleet: str
    device_url: str
    ca_pem: str
    ca_fingerprint: str
    broker_host: str
    broker_port: int
    root_json: str
    assignment_key: str
    assignment_key_id: str


class Enroller:
    """Safe to use from several threads."""

    def __init__(
        self, database: Database, issuer: Issuer, facts: FleetFacts, on_change: Callable[[DeviceId], None]
    ) -> None:
        """
        Args:
            on_change: hears of each device that was enrolled or revoked, after it is stored.
        """
        self._database = database
        self._issuer = issuer
        self.facts = facts
        self._on_change = on_change
        self._lock = threading.Lock()  # the authority's files, and one use of each token

    def make_token(self, request: TokenRequest, now: float) -> TokenResponse:
        """Return a new token. Only its hash is kept."""
        secret = new_secret()
        expires_at = now + request.valid_s
        with self._database.write() as tx:
            tokens.add_token(
                tx,
                token_hash(secret),
                device=request.device,
                group=request.group,
                now=now,
                expires_at=expires_at,
            )
        token = mint_token(self.facts.device_url, self.facts.ca_fingerprint, secret)
        return TokenResponse(token=token, expires_at=expires_at)

    def enroll(self, request: EnrollRequest, now: float) -> EnrollResponse:
        """Return the device's certificate and what it pins.

        Raises:
            Unknown: when no such token was ever made.
            Expired: when the token is too old.
            Conflict: when another device used it, or the id is taken.
            Forbidden: when the token is for another device.
            Rejected: when the request for a certificate is none.
        """
        key_digest = _key_digest(request.csr_pem)
        with self._lock:
            with self._database.read() as tx:
                token = _check(tokens.find_token(tx, token_hash(request.secret)), key_digest, now)
                if token.certificate is not None and token.used_by is not None:
                    return self._answer(token.used_by, token.certificate)
                device = _choose_id(token, request.device)
                before = devices.get_device(tx, device)
            if before is not None and token.device is None:
                raise Conflict(
                    f"device id {device!r} is taken: choose another, or have the operator make a token for it with "
                    f"`regatta device token --device {device}`"
                )
            certificate = self._issuer.sign_device_csr(request.csr_pem, device, CERTIFICATE_DAYS)
            self._revoke_all(device, now)
            with self._database.write() as tx:
                tokens.use_token(
                    tx, token.secret_hash, device=device, key_digest=key_digest, certificate=certificate, now=now
                )
                devices.enroll_device(tx, device, group=token.group, board=request.board, now=now)
                add_certificate(tx, device, _issued(certificate))
                welcome(tx, device, token.group, now)
                text = f"enrolled into group {token.group}" + (" again" if before is not None else "")
                add_event(tx, now, "device_enrolled", text, device=device)
        logger.info("event=device_enrolled device=%s group=%s", device, token.group)
        self._on_change(device)
        return self._answer(device, certificate)

    def renew(self, request: RenewRequest, now: float) -> RenewResponse:
        """Return the next certificate of the device that holds the key of `request.certificate_pem`.

        A device whose answer was lost asks again with the certificate that it has, and gets another.

        Raises:
            Rejected: when it does not prove to hold the key of a certificate of this fleet's.
            Forbidden: when the device was revoked or enrolled anew since.
        """
        with self._lock:
            holder = self._holder(request.certificate_pem, request.csr_pem)
            certificate = self._issuer.sign_device_csr(request.csr_pem, holder.device, CERTIFICATE_DAYS)
            with self._database.write() as tx:
                forget_ended(tx, holder.device, now, but=holder.serial)
                add_certificate(tx, holder.device, _issued(certificate))
                add_event(tx, now, "certificate_renewed", f"for {CERTIFICATE_DAYS} days", device=holder.device)
        logger.info("event=certificate_renewed device=%s", holder.device)
        return RenewResponse(certificate_pem=certificate)

    def holder(self, certificate_pem: str, csr_pem: str) -> DeviceId:
        """Return the device that proves to hold the key of its certificate, by a CSR of that key.

        Raises:
            Rejected: when it does not prove to hold the key of a certificate of this fleet's.
            Forbidden: when the device was revoked or enrolled anew since.
        """
        with self._lock:
            return self._holder(certificate_pem, csr_pem).device

    def _holder(self, certificate_pem: str, csr_pem: str) -> Holder:
        holder = self._issuer.holder_of(certificate_pem, csr_pem)
        with self._database.read() as tx:
            known = certificates_of(tx, holder.device)
        if holder.serial not in known:
            raise Forbidden(
                f"device {holder.device!r} was revoked or enrolled anew: enroll it with a token made by "
                f"`regatta device token --device {holder.device}`"
            )
        return holder

    def revoke(self, device: DeviceId, now: float) -> None:
        """Take the device's certificate and its place in the fleet away.

        The revocation list comes first: a server that is killed in between has revoked more than it knows, and
        the operator, who got no answer, asks again.

        Raises:
            NotFound: when there is no such device.
        """
        with self._lock:
            with self._database.read() as tx:
                row = devices.get_device(tx, device)
            if row is None:
                raise NotFound(f"there is no device {device!r}: see `regatta status`")
            self._revoke_all(device, now)
            if not row.revoked:
                with self._database.write() as tx:
                    devices.revoke_device(tx, device, now)
                    note_revoked(tx, device)
                    batching.note_revoked(tx, device, now)
                    add_event(tx, now, "device_revoked", "revoked by the operator", device=device)
        self._issuer.cut(device)  # after the lock: it waits for the broker, for seconds when that is down
        logger.info("event=device_revoked device=%s", device)
        self._on_change(device)

    def _revoke_all(self, device: DeviceId, now: float) -> None:
        """Put every certificate of the device that has not ended on the list, and renew none of them any more."""
        with self._database.read() as tx:
            known = certificates_of(tx, device)
        for issued in known.values():
            if issued.expires_at > now:
                self._issuer.revoke(issued.serial)
        with self._database.write() as tx:
            forget_certificates(tx, device)

    def _answer(self, device: DeviceId, certificate: str) -> EnrollResponse:
        facts = self.facts
        return EnrollResponse(
            fleet=facts.fleet,
            device=device,
            certificate_pem=certificate,
            ca_pem=facts.ca_pem,
            broker_host=facts.broker_host,
            broker_port=facts.broker_port,
            root_json=facts.root_json,
            assignment_key=facts.assignment_key,
            assignment_key_id=facts.assignment_key_id,
        )


def _issued(certificate_pem: str) -> Issued:
    certificate = x509.load_pem_x509_certificate(certificate_pem.encode())
    return Issued(certificate.serial_number, certificate.not_valid_after_utc.timestamp())


def _check(token: TokenRow | None, key_digest: str, now: float) -> TokenRow:
    if token is None:
        raise Unknown(f"this enrolment token is not known to this fleet: {_MINT}")
    if token.used_at is not None and token.key_digest != key_digest:
        raise Conflict(f"this enrolment token was used already, by {token.used_by}: {_MINT}")
    if now > token.expires_at:
        raise Expired(f"this enrolment token expired {now - token.expires_at:.0f} s ago: {_MINT}")
    return token


def _choose_id(token: TokenRow, asked: DeviceId | None) -> DeviceId:
    if token.device is not None and asked is not None and token.device != asked:
        raise Forbidden(f"this enrolment token is for device {token.device!r}, not for {asked!r}: {_MINT}")
    return token.device or asked or DeviceId(f"device-{secrets.token_hex(4)}")


def _key_digest(csr_pem: str) -> str:
    try:
        key = x509.load_pem_x509_csr(csr_pem.encode()).public_key()
        return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
    except ValueError as err:
        raise Rejected(f"this is no request for a certificate (PKCS#10, PEM): {err}") from err
