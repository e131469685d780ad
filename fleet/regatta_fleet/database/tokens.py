"""One-time enrolment tokens. Only hashes of their secrets are kept (regatta_provisioning.tokens.token_hash)."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, delete, insert, select, update

from regatta_fleet.database.tables import tokens
from regatta_protocol.ids import DeviceId

__all__ = ["TokenRow", "add_token", "find_token", "use_token"]

_KEEP_EXPIRED_S = 30 * 86_400.0  # so long a late device is told "expired" or "used", afterwards "unknown"


@dataclass(frozen=True)
class TokenRow:
    secret_hash: str
    device: DeviceId | None
    group: str
    expires_at: float
    used_at: float | None
    used_by: DeviceId | None
    key_digest: str | None
    certificate: str | None


def add_token(
    tx: Connection, secret_hash: str, *, device: DeviceId | None, group: str, now: float, expires_at: float
) -> None:
    """Store a token, and forget those that expired long ago."""
    tx.execute(delete(tokens).where(tokens.c.expires_at < now - _KEEP_EXPIRED_S))
    tx.execute(
        insert(tokens).values(
            secret_hash=secret_hash, device=device, group_name=group, created_at=now, expires_at=expires_at
        )
    )


def find_token(tx: Connection, secret_hash: str) -> TokenRow | None:
    """Return the token of that secret, used or expired ones too."""
    row = tx.execute(select(tokens).where(tokens.c.secret_hash == secret_hash)).one_or_none()
    if row is None:
        return None
    return TokenRow(
        row.secret_hash,
        row.device,
        row.group_name,
        row.expires_at,
        row.used_at,
        row.used_by,
        row.key_digest,
        row.certificate,
    )


def use_token(
    tx: Connection, secret_hash: str, *, device: DeviceId, key_digest: str, certificate: str, now: float
) -> bool:
    """Mark the token as used by this request; False when another one was faster."""
    result = tx.execute(
        update(tokens)
        .where(tokens.c.secret_hash == secret_hash, tokens.c.used_at.is_(None))
        .values(used_at=now, used_by=device, key_digest=key_digest, certificate=certificate)
    )
    return result.rowcount == 1
