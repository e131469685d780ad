"""A candidate: one way of running a model on a board, and its name in reports, `runtime/variant/delegate/tN`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from pydantic import Field

from regatta_protocol.errors import Rejected
from regatta_protocol.wire import Wire

__all__ = ["MAX_THREADS", "PART", "Candidate", "Plugin", "parse_candidate_id"]

MAX_THREADS = 256
PART = r"[a-z0-9][a-z0-9._-]{0,63}"
_ID = re.compile(rf"({PART})/({PART})/({PART})/t([1-9][0-9]{{0,2}})")


class Plugin(Wire):
    """An external delegate: a library to load and what to tell it."""

    library: str
    options: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True, order=True)
class Candidate:
    """Runtime × variant × delegate × threads.

    `runtime` is litert or tflite; `delegate` is xnnpack, none (the runtime's own kernels), ref (its reference
    kernels, which never race) or the name of an external one; `plugin` says what to load for that, and None leaves it
    to the table of delegates.
    """

    runtime: str
    variant: str
    delegate: str
    threads: int
    plugin: Plugin | None = field(default=None, compare=False)

    @property
    def id(self) -> str:
        return f"{self.runtime}/{self.variant}/{self.delegate}/t{self.threads}"


def parse_candidate_id(text: str) -> Candidate:
    """Return the candidate that `text` names.

    Raises:
        Rejected: when it is not RUNTIME/VARIANT/DELEGATE/tTHREADS.
    """
    match = _ID.fullmatch(text)
    if match is None or int(match[4]) > MAX_THREADS:
        raise Rejected(
            f"{text[:160]!r} names no candidate: write RUNTIME/VARIANT/DELEGATE/tTHREADS, "
            "for example litert/int8/xnnpack/t2"
        )
    return Candidate(match[1], match[2], match[3], int(match[4]))
