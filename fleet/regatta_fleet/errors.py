"""Errors of the fleet's server, in the families of regatta_protocol.errors; each says how HTTP calls it.

Rejected
├── NotFound (404)    no such thing is here
├── Conflict (409)    it cannot be done as things stand
├── Forbidden (403)   not for this one
├── Unknown (401)     who asks is not known
└── Expired (410)     it was valid once
Retryable
├── Busy (503)        later
└── TooMany (429)     later, and less often
"""

from __future__ import annotations

from regatta_protocol.errors import Misuse, RegattaError, Rejected, Retryable, StorageFull, TooLarge

__all__ = ["Busy", "Conflict", "Expired", "Forbidden", "NotFound", "TooMany", "Unknown", "status_of"]


class NotFound(Rejected):
    """No such thing is here."""


class Conflict(Rejected):
    """It cannot be done as things stand."""


class Forbidden(Rejected):
    """It may be done, but not by or for this one."""


class Unknown(Rejected):
    """Who asks is not known."""


class Expired(Rejected):
    """It was valid once."""


class Busy(Retryable):
    """The server has too much to do at the moment."""


class TooMany(Retryable):
    """This caller asks too often."""


_STATUS: tuple[tuple[type[RegattaError], int], ...] = (  # the first that fits
    (NotFound, 404),
    (Conflict, 409),
    (Forbidden, 403),
    (Unknown, 401),
    (Expired, 410),
    (TooLarge, 413),
    (Rejected, 422),
    (StorageFull, 507),
    (TooMany, 429),
    (Retryable, 503),
    (Misuse, 500),
)


def status_of(error: RegattaError) -> int:
    """Return the HTTP status that says what the caller shall do about `error`."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
