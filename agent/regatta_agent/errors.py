"""The agent's own errors, within the families of regatta_protocol.errors.

Retryable
├── NotSent       the connection went, or the line was full, just as something was to be asked
├── Unanswered    the fleet is silent though the broker is there: as being offline, no fault of the version
└── WrongClock    what the fleet signed is expired by this board's clock, and valid by the fleet's
BadDigest
└── WrongBlob     a file arrived whole and is not the promised one; it is fetched once more
"""

from __future__ import annotations

from regatta_protocol.errors import BadDigest, Retryable
from regatta_protocol.ids import Digest

__all__ = ["NotSent", "Unanswered", "WrongBlob", "WrongClock"]


class NotSent(Retryable):
    """The bus took the question not; nothing is known about what was asked for."""


class Unanswered(Retryable):
    """Nobody answered in time."""


class WrongClock(Retryable):
    """This board's clock must be set first."""


class WrongBlob(BadDigest):
    """A file arrived whole and is not the promised one."""

    def __init__(self, message: str, digest: Digest) -> None:
        super().__init__(message)
        self.digest = digest
