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

import datetime as dt
import hashlib
import ipaddress
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from pydantic import Field

from regatta_protocol.codec import decode
from regatta_protocol.durable import read_bounded, write_durably
from regatta_protocol.errors import Misuse, Rejected
from regatta_protocol.ids import DeviceId, parse_device_id
from regatta_protocol.wire import Wire
from regatta_provisioning.keys import make_private_folder, read_ec_key, write_private_key

__all__ = ["RESERVED_PREFIX", "Authority", "Holder", "fingerprint_of", "serial_of"]

RESERVED_PREFIX = "regatta-server"

_CA_DAYS = 3650
_SERVER_DAYS = 825  # longer ones are refused by some TLS clients (Apple's since 2019)
_DEVICE_DAYS = 90
_BACKDATED = dt.timedelta(days=1)  # boards whose clock lags a little must not refuse a new certificate
_MAX_CSR_CHARS = 16_384
_MAX_PEM_BYTES = 65_536
_MAX_REVOKED_BYTES = 8 * 1024 * 1024  # about 100,000 revocations
_KEY_FILE, _CA_FILE, _REVOKED_FILE = "ca-key.pem", "ca.pem", "revoked.json"

Clock = Callable[[], float]


class _Revocation(Wire):
    serial: str  # hexadecimal, because JSON's numbers end at 2^53
    at: float


class _Revoked(Wire):
    schema_version: int = 1
    entries: tuple[_Revocation, ...] = Field(default=(), max_length=100_000)


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
        name = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, fleet),
                x509.NameAttribute(NameOID.COMMON_NAME, "Regatta fleet authority"),
            ]
        )
        usage = _key_usage(key_cert_sign=True, crl_sign=True)
        builder = _dated(_subject(name, key.public_key()), clock(), _CA_DAYS).issuer_name(name)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(usage, critical=True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        certificate = builder.sign(key, hashes.SHA256())
        write_durably(folder / _CA_FILE, _pem(certificate), mode=0o644)
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
        return _pem(self._certificate).decode()

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
        public_key = _checked_csr(csr_pem, device)
        return _pem(self._issue(device, public_key, valid_days, ExtendedKeyUsageOID.CLIENT_AUTH)).decode()

    def holder_of(self, certificate_pem: str, csr_pem: str) -> Holder:
        """Return whose certificate this is, when the CSR proves that its sender holds the certificate's key.

        A certificate that has ended is good enough for that, a revoked one is not.

        Raises:
            Rejected: when it is no device's certificate of this authority, is revoked, or the CSR is of another key.
        """
        certificate = _certificate(certificate_pem)
        try:
            certificate.verify_directly_issued_by(self._certificate)
            (name,) = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        except (ValueError, TypeError, InvalidSignature) as err:
            raise Rejected("the certificate is not of this fleet: enroll the device with a token") from err
        device = parse_device_id(str(name.value))
        if device.startswith(RESERVED_PREFIX):
            raise Rejected(f"{device!r} is the server's own name, and no device's")
        if _checked_csr(csr_pem, device) != certificate.public_key():
            raise Rejected("the CSR is of another key than the certificate's")
        serial = certificate.serial_number
        if any(entry.serial == f"{serial:x}" for entry in self._read_revoked().entries):
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
        names = x509.SubjectAlternativeName([_general_name(host) for host in dict.fromkeys(hosts)])
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
        revoked = self._read_revoked()
        text = f"{serial:x}"
        if any(entry.serial == text for entry in revoked.entries):
            return
        grown = _Revoked(entries=(*revoked.entries, _Revocation(serial=text, at=self._clock())))
        write_durably(self._folder / _REVOKED_FILE, grown.model_dump_json().encode())

    def crl_pem(self) -> str:
        """Return the list of revoked certificates, for the broker.

        Its next update is the CA's end: the broker reads it from a file beside it, and OpenSSL refuses every client
        once a CRL is past its next update, so a short life would buy an outage and nothing else.
        """
        revoked = self._read_revoked()
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(_moment(self._clock()) - _BACKDATED)
            .next_update(self._certificate.not_valid_after_utc)
            .add_extension(x509.CRLNumber(len(revoked.entries) + 1), critical=False)
            .add_extension(self._key_identifier(), critical=False)
        )
        for entry in revoked.entries:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(int(entry.serial, 16))
                .revocation_date(_moment(entry.at))
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
        write_durably(certificate_path, _pem(certificate), mode=0o644)
        return key_path, certificate_path

    def _issue(
        self,
        common_name: str,
        public_key: _PublicKey,
        valid_days: int,
        purpose: x509.ObjectIdentifier,
        names: x509.SubjectAlternativeName | None = None,
    ) -> x509.Certificate:
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, self.fleet),
                x509.NameAttribute(NameOID.COMMON_NAME, common_name),
            ]
        )
        usage = _key_usage(digital_signature=True, key_encipherment=isinstance(public_key, rsa.RSAPublicKey))
        builder = _dated(
            _subject(subject, public_key), self._clock(), valid_days, self._certificate.not_valid_after_utc
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

    def _read_revoked(self) -> _Revoked:
        path = self._folder / _REVOKED_FILE
        try:
            return decode(_Revoked, read_bounded(path, _MAX_REVOKED_BYTES), _MAX_REVOKED_BYTES)
        except FileNotFoundError:
            return _Revoked()
        except Rejected as err:
            raise Misuse(f"{path} is damaged ({err}): put it back from your backup, or revoked devices return") from err


def serial_of(certificate_pem: str) -> int:
    """Return the serial number of a certificate, for `Authority.revoke`.

    Raises:
        Rejected: when it is no certificate.
    """
    return _certificate(certificate_pem).serial_number


def fingerprint_of(certificate_pem: str) -> str:
    """Return the SHA-256 of the certificate's DER, lower-case hex.

    Raises:
        Rejected: when it is no certificate.
    """
    return hashlib.sha256(_certificate(certificate_pem).public_bytes(serialization.Encoding.DER)).hexdigest()


_PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey


def _certificate(pem: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem.encode())
    except ValueError as err:
        raise Rejected(f"this is no certificate in PEM form: {err}") from err


def _checked_csr(csr_pem: str, device: DeviceId) -> _PublicKey:
    """Return the key that the CSR proves its sender to hold.

    Raises:
        Rejected: when it does not prove it, or may not have a certificate.
    """
    if len(csr_pem) > _MAX_CSR_CHARS:
        raise Rejected(f"a CSR of {len(csr_pem)} characters is over the limit of {_MAX_CSR_CHARS}")
    try:
        csr = x509.load_pem_x509_csr(csr_pem.encode())
        valid = csr.is_signature_valid
        key = csr.public_key()
        names = csr.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except Exception as err:  # the sender chose these bytes, and parsers of them raise more than they document
        raise Rejected(f"this is no certificate signing request: {err}") from err
    if not valid:
        raise Rejected("the CSR is not signed by the key that it carries: its sender may not hold the key")
    strong = (
        isinstance(key, ed25519.Ed25519PublicKey)
        or (isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in ("secp256r1", "secp384r1", "secp521r1"))
        or (isinstance(key, rsa.RSAPublicKey) and key.key_size >= 2048)
    )
    if not strong:
        raise Rejected("the CSR's key is too weak or of an unknown kind: use EC P-256, Ed25519 or RSA of 2048 bits")
    if any(name.value != device for name in names):
        raise Rejected(f"the CSR asks for {str(names[0].value)[:80]!r}, but this enrolment is of device {device!r}")
    assert isinstance(key, ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey | rsa.RSAPublicKey)
    return key


def _kept_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Return the key in `path`, made new where there is none."""
    if not path.exists():
        write_private_key(path, ec.generate_private_key(ec.SECP256R1()))
    return read_ec_key(path)


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host.encode("idna").decode())
    except UnicodeError as err:
        raise Misuse(f"{host[:80]!r} is no host name or IP address ({err})") from err


def _subject(name: x509.Name, public_key: _PublicKey) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder().subject_name(name).public_key(public_key).serial_number(x509.random_serial_number())
    )


def _dated(
    builder: x509.CertificateBuilder, now: float, days: int, latest: dt.datetime | None = None
) -> x509.CertificateBuilder:
    """Return the builder with its validity; never beyond `latest`, the issuer's own end."""
    end = _moment(now) + dt.timedelta(days=days)
    return builder.not_valid_before(_moment(now) - _BACKDATED).not_valid_after(min(end, latest) if latest else end)


def _moment(now: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(int(now), dt.timezone.utc)


def _key_usage(
    *,
    digital_signature: bool = False,
    key_encipherment: bool = False,
    key_cert_sign: bool = False,
    crl_sign: bool = False,
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_encipherment=key_encipherment,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
