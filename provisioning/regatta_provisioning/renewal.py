"""Renewing this device's certificate: run now and then as a program by the agent, and by hand.

    python -m regatta_provisioning.renewal IDENTITY-FOLDER [--force]

It is due when a third of its life is left, or when it is not good yet, because the fleet's clock was ahead. The key
stays the same, and the new certificate takes the old one's place in one step, so that a kill at any moment leaves a
pair that works; the agent's next connection uses it. Damaged files of the identity are restored first, so that a board
that runs for years finds such damage within a day. A certificate that has ended already is renewed just so: whoever
holds the key of a device that was not revoked is that device.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import NameOID

from regatta_protocol.codec import decode, encode
from regatta_protocol.durable import read_bounded
from regatta_protocol.errors import Misuse, RegattaError, Rejected
from regatta_provisioning.asking import believing, call, refusal
from regatta_provisioning.enrollment import MAX_ENROLL_BYTES, RENEW_PATH, RenewRequest, RenewResponse
from regatta_provisioning.identity import Identity, mend_identity, replace_certificate
from regatta_provisioning.keys import make_csr, read_ec_key
from regatta_provisioning.ownership import as_owner_of

__all__ = ["Validity", "main", "renew", "validity_of"]

logger = logging.getLogger(__name__)

_MAX_PEM_BYTES = 16_384
_DUE_SHARE = 1 / 3  # of the life; Let's Encrypt's advice: enough time for months without network
_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Validity:
    """From when until when a certificate is good, in seconds since 1970."""

    begins: float
    ends: float

    def is_due(self, now: float) -> bool:
        """Return whether it is time for the next one."""
        return now < self.begins or now > self.ends - (self.ends - self.begins) * _DUE_SHARE


def validity_of(certificate: bytes) -> Validity:
    """Return when the certificate (PEM) is good.

    Raises:
        Misuse: when it is none.
    """
    parsed = _parsed(certificate)
    return Validity(parsed.not_valid_before_utc.timestamp(), parsed.not_valid_after_utc.timestamp())


def renew(folder: Path, *, now: float, force: bool = False, timeout_s: float = _TIMEOUT_S) -> Validity | None:
    """Return when the new certificate in the identity folder is good, or None when none was due.

    Args:
        folder: as enrolment left it.
        now: the wall clock, in seconds since 1970.
        force: renew although it is not due.
        timeout_s: of the one request.

    Raises:
        Retryable: when the server cannot be reached or is busy, or the disk is full.
        Rejected: when the fleet refuses, or answers with what is no certificate for this key.
        Untrusted: when the server does not prove to be the fleet's.
        Misuse: when the identity is damaged.
    """
    with as_owner_of(folder):
        return _renew(folder, now, force, timeout_s)


def _renew(folder: Path, now: float, force: bool, timeout_s: float) -> Validity | None:
    identity = mend_identity(folder)
    before = read_bounded(identity.certificate_path, _MAX_PEM_BYTES)
    if not force and not validity_of(before).is_due(now):
        return None
    key = read_ec_key(identity.key_path)
    request = RenewRequest(certificate_pem=before.decode(), csr_pem=make_csr(key, identity.device))
    ca_pem = read_bounded(identity.ca_path, _MAX_PEM_BYTES).decode()
    status, body = call(identity.api_url, "POST", RENEW_PATH, encode(request), believing(ca_pem), timeout_s)
    if status != 200:
        raise refusal(identity.api_url, status, body, "renew the certificate of")
    fresh = decode(RenewResponse, body, MAX_ENROLL_BYTES).certificate_pem.encode()
    _check(fresh, before, ca_pem.encode(), identity)
    replace_certificate(folder, fresh)
    return validity_of(fresh)


def _check(fresh: bytes, before: bytes, ca: bytes, identity: Identity) -> None:
    """Raise Rejected when the new certificate would not do for what the old one did."""
    wrong = f"{identity.api_url} answered, but "
    try:
        certificate = x509.load_pem_x509_certificate(fresh)
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(ca))
    except (ValueError, TypeError, InvalidSignature) as err:
        raise Rejected(f"{wrong}with no certificate of this fleet ({type(err).__name__}: {err})") from err
    names = [str(name.value) for name in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if certificate.public_key() != _parsed(before).public_key():
        raise Rejected(f"{wrong}with a certificate for another key")
    if names != [identity.device]:
        raise Rejected(f"{wrong}with a certificate for {names}, not for {identity.device}")


def _parsed(pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as err:
        raise Misuse(
            f"this device's certificate is damaged ({err}): run `regatta-agent enroll TOKEN --force` with a token "
            "from `regatta device token`"
        ) from err


def main(arguments: list[str] | None = None) -> int:
    """Renew when it is due; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m regatta_provisioning.renewal", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--force", action="store_true")
    options = parser.parse_args(arguments)
    try:
        renewed = renew(options.folder, now=time.time(), force=options.force)
    except RegattaError as err:
        sys.stderr.write(f"{err}\n")
        return err.exit_code
    except OSError as err:
        sys.stderr.write(f"the new certificate cannot be kept: {err}\n")
        return 1
    sys.stdout.write("not due\n" if renewed is None else f"renewed until {renewed.ends:.0f}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
