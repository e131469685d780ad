"""The exit codes of `regatta`, as data: the reference page lists them, and tests hold code and page together.

The families of regatta_protocol.errors bring their own codes; the others stand here.
"""

from __future__ import annotations

from regatta_protocol.errors import Misuse, Rejected, Retryable, StorageFull, Untrusted

__all__ = [
    "BUG",
    "DEBUG_VARIABLE",
    "HELD",
    "INTERRUPTED",
    "MEANINGS",
    "NOT_COMPLETED",
    "READER_GONE",
    "STORAGE",
    "USAGE",
]

DEBUG_VARIABLE = "REGATTA_DEBUG"

USAGE = 2
NOT_COMPLETED = 3
HELD = 4
BUG = 70  # EX_SOFTWARE of sysexits.h
STORAGE = StorageFull.exit_code
INTERRUPTED = 130  # 128 + SIGINT, as shells count
READER_GONE = 141  # 128 + SIGPIPE

MEANINGS: dict[int, str] = {
    0: "Done. With `rollout start --wait`: the rollout completed.",
    1: "An error of no other kind.",
    USAGE: "Wrong usage: an unknown command, option or value.",
    NOT_COMPLETED: "The rollout waited for was rolled back or aborted.",
    HELD: "The rollout waited for is held by its gate: promote or abort it.",
    Rejected.exit_code: "Rejected: this input will never work (bad model, unknown name, wrong digest).",
    BUG: f"A bug of Regatta: `{DEBUG_VARIABLE}=1` shows the traceback.",
    STORAGE: "The disk is full, or a file cannot be read or written.",
    Retryable.exit_code: "Try again later: no server answers, it is busy, or a wait ran out of time.",
    Untrusted.exit_code: "The server refuses the token, or a signature is not the fleet's.",
    Misuse.exit_code: "A set-up that cannot work: the message says what to change.",
    INTERRUPTED: "Ended by Ctrl-C.",
    READER_GONE: "The reader of the output (head, less) went away.",
}
