"""The error families of Regatta, split by what the caller does about them.

    RegattaError
    ├── Retryable     the same call may work later: network, busy, disk full. Back off and try again.
    │   ├── StorageFull
    │   └── Exhausted     out of file descriptors, memory or processes: nothing is wrong with the input or the file
    ├── Rejected      this input will never work: bad signature, wrong shape, unknown key. Never retry it.
    │   ├── Untrusted     not signed by the fleet's keys, rolled back, or of another fleet
    │   │   └── Expired       was signed by them, and is not valid any more
    │   ├── BadDigest     the bytes are not the ones that were promised
    │   ├── TooLarge      over a stated limit
    │   └── TooNew        of a schema that only a newer Regatta can read
    └── Misuse        our own bug or a wrong set-up: stop, and let the operator or systemd act

Every message says what happened, with which values, and what to do. Command-line programs end with
`exit_code` (documented in docs/exit-codes.md). Packages derive their own errors from these families.
"""

from __future__ import annotations

__all__ = [
    "BadDigest",
    "Exhausted",
    "Expired",
    "Misuse",
    "RegattaError",
    "Rejected",
    "Retryable",
    "StorageFull",
    "TooLarge",
    "TooNew",
    "Untrusted",
]


class RegattaError(Exception):
    """Anything that Regatta raises on purpose."""

    exit_code = 1


class Retryable(RegattaError):
    """The same call may work later."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h


class StorageFull(Retryable):
    """No space left (or none within the budget) to store what was asked for."""

    exit_code = 74  # EX_IOERR


class Exhausted(Retryable):
    """This process or machine has no file descriptor, memory or process left for now."""


class Rejected(RegattaError):
    """This input will never work; retrying it is pointless."""

    exit_code = 65  # EX_DATAERR


class Untrusted(Rejected):
    """The signature, its freshness or its fleet is not what this device pinned."""

    exit_code = 77  # EX_NOPERM


class Expired(Untrusted):
    """The fleet's keys signed it, and by this clock it is not valid any more."""


class BadDigest(Rejected):
    """The bytes do not have the digest or length that was promised."""


class TooLarge(Rejected):
    """The input is over a stated limit."""


class TooNew(Rejected):
    """The input says that a newer schema is needed to read it: this program must be updated first."""


class Misuse(RegattaError):
    """A bug of ours or a set-up that cannot work: the operator must act."""

    exit_code = 78  # EX_CONFIG
