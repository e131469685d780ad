"""Which certificates each device was given and may still show: by enrolment, and by each renewal since."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, delete, insert, select

from regatta_fleet.database.tables import certificates
from regatta_protocol.ids import DeviceId

__all__ = ["Issued", "add_certificate", "certificates_of", "forget_certificates", "forget_ended"]


@dataclass(frozen=True)
class Issued:
    """A certificate's serial number, and when it ends in seconds since 1970."""

    serial: int
    expires_at: float


def add_certificate(tx: Connection, device: DeviceId, issued: Issued) -> None:
    """Note that the device was given a certificate."""
    tx.execute(insert(certificates).values(device=device, serial=str(issued.serial), expires_at=issued.expires_at))


def certificates_of(tx: Connection, device: DeviceId) -> Mapping[int, Issued]:
    """Return the device's certificates by serial number, ended ones too."""
    rows = tx.execute(select(certificates).where(certificates.c.device == device))
    return {int(row.serial): Issued(int(row.serial), row.expires_at) for row in rows}


def forget_certificates(tx: Connection, device: DeviceId) -> None:
    """Forget them all: none of them is renewed any more. Those that have not ended must be on the revocation list."""
    tx.execute(delete(certificates).where(certificates.c.device == device))


def forget_ended(tx: Connection, device: DeviceId, now: float, but: int) -> None:
    """Forget those that have ended, except the one with the serial number `but`."""
    ended = (certificates.c.expires_at < now) & (certificates.c.serial != str(but))
    tx.execute(delete(certificates).where((certificates.c.device == device) & ended))
