"""A candidate: one way of running a model on a board, and its name in reports.

`RUNTIME/VARIANT/DELEGATE/tTHREADS`, or `RUNTIME/VARIANT/DELEGATE+SET/tTHREADS` for a delegate with a named set of
options; for example `litert/int8/xnnpack/t2` and `compiled/float32/gpu+f32/t1`. A `+` stands in no other part.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from regatta_protocol.errors import Rejected
from regatta_protocol.values import Plugin

__all__ = ["MAX_THREADS", "PART", "Candidate", "parse_candidate_id"]

MAX_THREADS = 256
PART = r"[a-z0-9][a-z0-9._-]{0,63}"
_ID = re.compile(rf"({PART})/({PART})/({PART})(?:\+({PART}))?/t([1-9][0-9]{{0,2}})")


@dataclass(frozen=True, order=True)
class Candidate:
    """Runtime × variant × delegate × threads × options.

    `runtime` is one of runtime.py; `delegate` is one of the runtime's own (xnnpack, none, cpu, or ref: the reference
    kernels, which never race) or the name of an accelerator's; `plugin` says what to load and what to tell it, and None
    leaves it to the table of delegates; `option_set` names the set of options, "" when there is just one.
    """

    runtime: str
    variant: str
    delegate: str
    threads: int
    plugin: Plugin | None = field(default=None, compare=False)
    option_set: str = ""

    @property
    def drive(self) -> str:
        """The delegate with its set of options, as in the id."""
        return f"{self.delegate}+{self.option_set}" if self.option_set else self.delegate

    @property
    def id(self) -> str:
        return f"{self.runtime}/{self.variant}/{self.drive}/t{self.threads}"


def parse_candidate_id(text: str) -> Candidate:
    """Return the candidate that `text` names.

    Raises:
        Rejected: when it is not RUNTIME/VARIANT/DELEGATE[+SET]/tTHREADS.
    """
    match = _ID.fullmatch(text)
    if match is None or int(match[5]) > MAX_THREADS:
        raise Rejected(
            f"{text[:160]!r} names no candidate: write RUNTIME/VARIANT/DELEGATE/tTHREADS or "
            "RUNTIME/VARIANT/DELEGATE+SET/tTHREADS, for example litert/int8/xnnpack/t2"
        )
    return Candidate(match[1], match[2], match[3], int(match[5]), option_set=match[4] or "")
