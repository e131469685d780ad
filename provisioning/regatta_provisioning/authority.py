"""The fleet's certificate authority: one EC P-256 key that signs devices, the server's listeners and its own client.

Rules:
- The fleet sets every subject; a CSR only proves that its sender holds the key. A CSR that names another device, has
  a weak key or a wrong signature is refused.
- The broker takes the common name for the user, so names that begin with `regatta-server` are kept for the server.
- `ca.pem` is written last: a folder without it holds no authority yet, and `create` finishes it.
- A key file is written before its certificate and kept when the certificate is made anew, so that the two always match.

It does not decide who may enrol, and keeps no list of what it issued: that is the device registry's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from regatta_protocol.durable import read_bounded, write_durably
from regatta_protocol.errors import Misuse, Rejected
from regatta_protocol.ids import DeviceId, parse_device_id
from regatta_provisioning.certificates import (
    BACKDATED,
    PublicKey,
    certificate_in,
    checked_csr,
    dated,
    fingerprint_of,
    general_name,
    key_usage,
    moment,
    name_of,
    pem,
    subject,
)
from regatta_provisioning.keys import make_private_folder, read_ec_key, write_private_key
from regatta_provisioning.revocations import Revocations

__all__ = ["RESERVED_PREFIX", "Authority", "Holder"]

RESERVED_PREFIX = "regatta-server"

_CA_DAYS = 3650
_SERVER_DAYS = 825  # longer ones are refused by some TLS clients (Apple's since 2019)
_DEVICE_DAYS = 90
_MAX_PEM_BYTES = 65_536
_KEY_FILE, _CA_FILE, _REVOKED_FILE = "ca-key.pem", "ca.pem", "revoked.json"

Clock = Callable[[], float]


@dataclass(frozen=True)
class Holder:
    """Who proved to hold the key of a certificate of this authority."""

    device: DeviceId
    serial: int


class Authority:
    """The authority of one fleet, in one folder."""

    def __init__(
        self, folder: Path, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate, clock: Clock
    ) -> None:
        self._folder = folder
        self._key = key
        self._certificate = certificate
        self._revocations = Revocations(folder / _REVOKED_FILE)
        self._clock = clock

    @classmethod
    def create(cls, folder: Path, fleet: str, clock: Clock = time.time) -> Authority:
        """Return the authority of `fleet` in `folder`, made new where there is none or it was left unfinished.

        Raises:
            Misuse: when the folder holds another fleet's authority, or `fleet` is no name for one.
        """
        if not 1 <= len(fleet) <= 64 or not fleet.isprintable():
            raise Misuse(f"fleet id {fleet[:80]!r} is not valid: use 1 to 64 printable characters")
        if (folder / _CA_FILE).exists():
            authority = cls.load(folder, clock)
            if authority.fleet != fleet:
                raise Misuse(f"{folder} holds the authority of fleet {authority.fleet!r}, not of {fleet!r}")
            return authority
        make_private_folder(folder)
        key = _kept_key(folder / _KEY_FILE)
        name = name_of(fleet, "Regatta fleet authority")
        usage = key_usage(key_cert_sign=True, crl_sign=True)
        builder = dated(subject(name, key.public_key()), clock(), _CA_DAYS).issuer_name(name)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(usage, critical=True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        certificate = builder.sign(key, hashes.SHA256())
        write_durably(folder / _CA_FILE, pem(certificate), mode=0o644)
        return cls(folder, key, certificate, clock)

    @classmethod
    def load(cls, folder: Path, clock: Clock = time.time) -> Authority:
        """Return the authority in `folder`.

        Raises:
            Misuse: when there is none, or its files are damaged or do not belong together.
        """
        try:
            certificate = x509.load_pem_x509_certificate(read_bounded(folder / _CA_FILE, _MAX_PEM_BYTES))
        except FileNotFoundError as err:
            raise Misuse(f"there is no certificate authority in {folder}: create the fleet first") from err
        except ValueError as err:
            raise Misuse(f"{folder / _CA_FILE} is damaged ({err}): put it back from your backup") from err
        key = read_ec_key(folder / _KEY_FILE)
        if key.public_key() != certificate.public_key():
            raise Misuse(
                f"{_KEY_FILE} and {_CA_FILE} in {folder} do not belong together: put both back from one backup"
            )
        return cls(folder, key, certificate, clock)

    @property
    def fleet(self) -> str:
        (attribute,) = self._certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
        return str(attribute.value)

    @property
    def ca_pem(self) -> str:
        return pem(self._certificate).decode()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the CA's DER, lower-case hex: what a token carries."""
        return fingerprint_of(self.ca_pem)

    def sign_device_csr(self, csr_pem: str, device: DeviceId, valid_days: int = _DEVICE_DAYS) -> str:
        """Return the device's client certificate (PEM), with the common name `device`.

        Raises:
            Rejected: when the CSR is damaged, not signed by its key, of a weak key, or names another device, or
                when `device` is a name that is kept for the server.
        """
        parse_device_id(device)
        if device.startswith(RESERVED_PREFIX):
            raise Rejected(f"device id {device!r} is kept for the server: choose one that begins otherwise")
        if not 1 <= valid_days <= _CA_DAYS:
            raise Misuse(f"a certificate of {valid_days} days is not possible: choose 1 to {_CA_DAYS}")
        public_key = checked_csr(csr_pem, device)
        return pem(self._issue(device, public_key, valid_days, ExtendedKeyUsageOID.CLIENT_AUTH)).decode()

    def holder_of(self, certificate_pem: str, csr_pem: str) -> Holder:
        """Return whose certificate this is, when the CSR proves that its sender holds the certificate's key.

        A certificate that has ended is good enough for that, a revoked one is not.

        Raises:
            Rejected: when it is no device's certificate of this authority, is revoked, or the CSR is of another key.
        """
        certificate = certificate_in(certificate_pem)
        try:
            certificate.verify_directly_issued_by(self._certificate)
            (name,) = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        except (ValueError, TypeError, InvalidSignature) as err:
            raise Rejected("the certificate is not of this fleet: enroll the device with a token") from err
        device = parse_device_id(str(name.value))
        if device.startswith(RESERVED_PREFIX):
            raise Rejected(f"{device!r} is the server's own name, and no device's")
        if checked_csr(csr_pem, device) != certificate.public_key():
            raise Rejected("the CSR is of another key than the certificate's")
        serial = certificate.serial_number
        if self._revocations.holds(serial):
            raise Rejected("the certificate is revoked: enroll the device with a token made for it")
        return Holder(device, serial)

    def issue_server(
        self, folder: Path, name: str, hosts: Sequence[str], valid_days: int = _SERVER_DAYS
    ) -> tuple[Path, Path]:
        """Return the paths of `{name}-key.pem` and `{name}.pem` in `folder`: a TLS server's key and new certificate.

        Args:
            folder: Made where it is missing, with mode 0700.
            name: Of the listener, for example `broker`; the files' stem and the common name.
            hosts: Every host name and IP address that clients will connect to.
            valid_days: From today.

        Raises:
            Misuse: when there is no host, or one of them is no name.
        """
        if not hosts:
            raise Misuse(f"the server certificate {name!r} needs at least one host name or IP address")
        names = x509.SubjectAlternativeName([general_name(host) for host in dict.fromkeys(hosts)])
        return self._issue_pair(folder, name, valid_days, ExtendedKeyUsageOID.SERVER_AUTH, names)

    def issue_client(self, common_name: str = RESERVED_PREFIX, valid_days: int = _SERVER_DAYS) -> tuple[Path, Path]:
        """Return the paths of key and new certificate of one of the server's own MQTT clients.

        Raises:
            Misuse: when the name does not begin with `regatta-server`: only devices have other names.
        """
        if not common_name.startswith(RESERVED_PREFIX):
            raise Misuse(f"the server's client {common_name!r} must have a name that begins with {RESERVED_PREFIX!r}")
        return self._issue_pair(
            self._folder / "clients", common_name, valid_days, ExtendedKeyUsageOID.CLIENT_AUTH, None
        )

    def revoke(self, serial: int) -> None:
        """Note that the certificate with this serial number is void, durably. May be repeated.

        It takes effect where `crl_pem` is put to use: with new TLS connections only.
        """
        self._revocations.add(serial, self._clock())

    def crl_pem(self) -> str:
        """Return the list of revoked certificates, for the broker.

        Its next update is the CA's end: the broker reads it from a file beside it, and OpenSSL refuses every client
        once a CRL is past its next update, so a short life would buy an outage and nothing else.
        """
        revoked = self._revocations.all()
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(moment(self._clock()) - BACKDATED)
            .next_update(self._certificate.not_valid_after_utc)
            .add_extension(x509.CRLNumber(len(revoked) + 1), critical=False)
            .add_extension(self._key_identifier(), critical=False)
        )
        for entry in revoked:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(int(entry.serial, 16))
                .revocation_date(moment(entry.at))
                .build()
            )
        crl = builder.sign(self._key, hashes.SHA256())
        return crl.public_bytes(serialization.Encoding.PEM).decode()

    def _issue_pair(
        self,
        folder: Path,
        name: str,
        valid_days: int,
        purpose: x509.ObjectIdentifier,
        names: x509.SubjectAlternativeName | None,
    ) -> tuple[Path, Path]:
        make_private_folder(folder)
        key_path, certificate_path = folder / f"{name}-key.pem", folder / f"{name}.pem"
        key = _kept_key(key_path)
        certificate = self._issue(name, key.public_key(), valid_days, purpose, names)
        write_durably(certificate_path, pem(certificate), mode=0o644)
        return key_path, certificate_path

    def _issue(
        self,
        common_name: str,
        public_key: PublicKey,
        valid_days: int,
        purpose: x509.ObjectIdentifier,
        names: x509.SubjectAlternativeName | None = None,
    ) -> x509.Certificate:
        usage = key_usage(digital_signature=True, key_encipherment=isinstance(public_key, rsa.RSAPublicKey))
        builder = dated(
            subject(name_of(self.fleet, common_name), public_key),
            self._clock(),
            valid_days,
            self._certificate.not_valid_after_utc,
        )
        builder = builder.issuer_name(self._certificate.subject)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(usage, critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        builder = builder.add_extension(self._key_identifier(), critical=False)
        if names is not None:
            builder = builder.add_extension(names, critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def _key_identifier(self) -> x509.AuthorityKeyIdentifier:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())


def _kept_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Return the key in `path`, made new where there is none."""
    if not path.exists():
        write_private_key(path, ec.generate_private_key(ec.SECP256R1()))
    return read_ec_key(path)
