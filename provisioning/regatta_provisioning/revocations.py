"""The certificates that are void, in one file of the authority's folder; nothing is ever taken from it.

Not here: the list that is signed for the broker (authority.py).
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from regatta_protocol.codec import decode
from regatta_protocol.durable import read_bounded, write_durably
from regatta_protocol.errors import Misuse, Rejected
from regatta_protocol.wire import Wire

__all__ = ["Revocation", "Revocations"]

_MAX_BYTES = 8 * 1024 * 1024  # about 100,000 revocations


class Revocation(Wire):
    serial: str  # hexadecimal, because JSON's numbers end at 2^53
    at: float


class _Revoked(Wire):
    schema_version: int = 1
    entries: tuple[Revocation, ...] = Field(default=(), max_length=100_000)


class Revocations:
    """The file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def all(self) -> tuple[Revocation, ...]:
        """Return every revocation, oldest first.

        Raises:
            Misuse: when the file is damaged.
        """
        try:
            return decode(_Revoked, read_bounded(self._path, _MAX_BYTES), _MAX_BYTES).entries
        except FileNotFoundError:
            return ()
        except Rejected as err:
            raise Misuse(
                f"{self._path} is damaged ({err}): put it back from your backup, or revoked devices return"
            ) from err

    def holds(self, serial: int) -> bool:
        """Return whether the certificate with this serial number is void."""
        return any(entry.serial == f"{serial:x}" for entry in self.all())

    def add(self, serial: int, at: float) -> None:
        """Note that a certificate is void since `at`, durably. May be repeated."""
        entries = self.all()
        if any(entry.serial == f"{serial:x}" for entry in entries):
            return
        grown = _Revoked(entries=(*entries, Revocation(serial=f"{serial:x}", at=at)))
        write_durably(self._path, grown.model_dump_json().encode())
