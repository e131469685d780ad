"""X.509 as this fleet uses it: what a CSR must be, and the parts that its certificates are made of. Pure.

Not here: who signs what for whom (authority.py), and where keys and certificates lie.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import ipaddress

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from regatta_protocol.errors import Misuse, Rejected
from regatta_protocol.ids import DeviceId

__all__ = [
    "BACKDATED",
    "PublicKey",
    "certificate_in",
    "checked_csr",
    "dated",
    "fingerprint_of",
    "general_name",
    "key_usage",
    "moment",
    "name_of",
    "pem",
    "serial_of",
    "subject",
]

BACKDATED = dt.timedelta(days=1)  # boards whose clock lags a little must not refuse a new certificate

_MAX_CSR_CHARS = 16_384

PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey


def serial_of(certificate_pem: str) -> int:
    """Return the serial number of a certificate, for `Authority.revoke`.

    Raises:
        Rejected: when it is no certificate.
    """
    return certificate_in(certificate_pem).serial_number


def fingerprint_of(certificate_pem: str) -> str:
    """Return the SHA-256 of the certificate's DER, lower-case hex.

    Raises:
        Rejected: when it is no certificate.
    """
    return hashlib.sha256(certificate_in(certificate_pem).public_bytes(serialization.Encoding.DER)).hexdigest()


def certificate_in(pem: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem.encode())
    except ValueError as err:
        raise Rejected(f"this is no certificate in PEM form: {err}") from err


def checked_csr(csr_pem: str, device: DeviceId) -> PublicKey:
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


def general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host.encode("idna").decode())
    except UnicodeError as err:
        raise Misuse(f"{host[:80]!r} is no host name or IP address ({err})") from err


def subject(name: x509.Name, public_key: PublicKey) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder().subject_name(name).public_key(public_key).serial_number(x509.random_serial_number())
    )


def dated(
    builder: x509.CertificateBuilder, now: float, days: int, latest: dt.datetime | None = None
) -> x509.CertificateBuilder:
    """Return the builder with its validity; never beyond `latest`, the issuer's own end."""
    end = moment(now) + dt.timedelta(days=days)
    return builder.not_valid_before(moment(now) - BACKDATED).not_valid_after(min(end, latest) if latest else end)


def moment(now: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(int(now), dt.timezone.utc)


def key_usage(
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


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def name_of(fleet: str, common_name: str) -> x509.Name:
    """Return the subject of one of the fleet's certificates."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, fleet),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )
