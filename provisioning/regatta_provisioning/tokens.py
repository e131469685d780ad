"""Enrolment tokens: one line of text that carries the fleet's address, its CA's fingerprint, and a one-time secret.

    rgt1.<base64url of: 4 bytes checksum | 32 bytes SHA-256 of the CA | 24 bytes secret | URL in ASCII>

The checksum (of SHA-256) finds a token that was cut off or mistyped; it protects nothing. The server keeps only
`token_hash(secret)`, and says itself whether a token is expired or used.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import secrets
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from regatta_protocol.errors import Misuse, Rejected

__all__ = ["SECRET_PATTERN", "EnrollmentToken", "mint_token", "new_secret", "parse_token", "token_hash"]

SECRET_PATTERN = r"^[A-Za-z0-9_-]{32}$"  # noqa: S105  the shape of a secret, not one

_PREFIX = "rgt1."
_CHECKSUM_BYTES = 4
_FINGERPRINT_BYTES = 32
_SECRET_BYTES = 24  # 192 bits: nobody guesses it, so the stored hash needs no salt and no stretching
_HEAD_BYTES = _CHECKSUM_BYTES + _FINGERPRINT_BYTES + _SECRET_BYTES
_MAX_URL_BYTES = 512
_MAX_TOKEN_CHARS = len(_PREFIX) + (_HEAD_BYTES + _MAX_URL_BYTES + 2) // 3 * 4
_AGAIN = "copy it whole, or make a new one with `regatta device token`"


@dataclass(frozen=True)
class EnrollmentToken:
    api_url: str  # https, no slash at the end
    ca_fingerprint: str  # SHA-256 of the CA's DER, lower-case hex
    secret: str = field(repr=False)


def new_secret() -> str:
    """Return a fresh secret, 32 characters of base64url."""
    return secrets.token_urlsafe(_SECRET_BYTES)


def token_hash(secret: str) -> str:
    """Return what a server keeps in place of the secret: lower-case hex SHA-256."""
    return hashlib.sha256(secret.encode()).hexdigest()


def mint_token(api_url: str, ca_fingerprint: str, secret: str) -> str:
    """Return the token's text.

    Raises:
        Misuse: when a part is not what a token can carry.
    """
    reason = _url_problem(api_url)
    if reason is not None:
        raise Misuse(f"no token can be made for {api_url[:120]!r}: {reason}")
    if re.fullmatch(r"[0-9a-f]{64}", ca_fingerprint) is None:
        raise Misuse(f"{ca_fingerprint[:80]!r} is no SHA-256 in lower-case hex")
    if re.fullmatch(SECRET_PATTERN[1:-1], secret) is None:
        raise Misuse("this is no token secret: make one with new_secret()")
    body = bytes.fromhex(ca_fingerprint) + base64.urlsafe_b64decode(secret) + api_url.rstrip("/").encode("ascii")
    return _PREFIX + base64.urlsafe_b64encode(_checksum(body) + body).rstrip(b"=").decode()


def parse_token(text: str) -> EnrollmentToken:
    """Return what the token says. White space around and inside it, as of a wrapped line, does not matter.

    Raises:
        Rejected: when it is no token, or was cut off or changed. The token itself is never in the message.
    """
    if len(text) > 2 * _MAX_TOKEN_CHARS:
        raise Rejected(f"an enrolment token has at most {_MAX_TOKEN_CHARS} characters, this has {len(text)}: {_AGAIN}")
    compact = "".join(text.split())
    if not compact.startswith(_PREFIX):
        raise Rejected(f"this is no enrolment token, which begins with {_PREFIX!r}: {_AGAIN}")
    encoded = compact[len(_PREFIX) :]
    if re.fullmatch(r"[A-Za-z0-9_-]*", encoded) is None:
        raise Rejected(f"the enrolment token has characters that are none of A-Z, a-z, 0-9, '-' and '_': {_AGAIN}")
    try:
        raw = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
    except binascii.Error as err:
        raise Rejected(f"the enrolment token is cut off: {_AGAIN}") from err
    checksum, body = raw[:_CHECKSUM_BYTES], raw[_CHECKSUM_BYTES:]
    if len(raw) <= _HEAD_BYTES or checksum != _checksum(body):
        raise Rejected(f"the enrolment token is cut off or changed (its checksum does not match): {_AGAIN}")
    try:
        url = body[_FINGERPRINT_BYTES + _SECRET_BYTES :].decode("ascii")
    except UnicodeDecodeError as err:
        raise Rejected(f"the enrolment token carries no address: {_AGAIN}") from err
    reason = _url_problem(url)
    if reason is not None:
        raise Rejected(f"the enrolment token carries the address {url[:120]!r}: {reason}")
    secret = base64.urlsafe_b64encode(body[_FINGERPRINT_BYTES : _FINGERPRINT_BYTES + _SECRET_BYTES]).decode()
    return EnrollmentToken(url.rstrip("/"), body[:_FINGERPRINT_BYTES].hex(), secret)


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(b"rgt1" + body).digest()[:_CHECKSUM_BYTES]


def _url_problem(url: str) -> str | None:
    """Return why `url` cannot be enrolled at, or None."""
    if not url.isascii() or not url.isprintable() or " " in url or len(url) > _MAX_URL_BYTES:
        return f"an address is at most {_MAX_URL_BYTES} printable ASCII characters"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as err:
        return f"it is no URL ({err})"
    if parts.scheme != "https":
        return "it must begin with https://, because a device proves the fleet's identity by TLS"
    if not parts.hostname or port == 0:
        return "it names no host"
    if parts.username is not None or parts.query or parts.fragment or "?" in url or "#" in url:
        return "it must be only https://HOST[:PORT][/PATH]"
    return None
