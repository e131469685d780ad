"""A candidate: one way of running a model on a board, and its name in reports, `runtime/variant/delegate/tN`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from regatta_protocol.errors import Rejected

__all__ = ["MAX_THREADS", "Candidate", "parse_candidate_id"]

MAX_THREADS = 256
_PART = r"[a-z0-9][a-z0-9._-]{0,63}"
_ID = re.compile(rf"({_PART})/({_PART})/({_PART})/t([1-9][0-9]{{0,2}})")


@dataclass(frozen=True, order=True)
class Candidate:
    """Runtime × variant × delegate × threads.

    `runtime` is litert or tflite; `delegate` is xnnpack, none (the runtime's own kernels) or ref (its reference
    kernels, which never race).
    """

    runtime: str
    variant: str
    delegate: str
    threads: int

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
