"""What a version may wait for, in each state: the reason as it is shown, and what ends the wait. Pure data.

The reasons are written where the waits are decided (planner.py, boots.py, windows.py, health.py, outcomes.py,
worker_outcomes.py); a test holds them to this table, and the documentation shows it. Work that is going on is no wait:
its deadline is its job's.
"""

from __future__ import annotations

from typing import NamedTuple

from regatta_protocol.messages import InstallState

__all__ = ["WAITS", "Wait"]

_S = InstallState
_ASKING = (_S.ASSIGNED, _S.AUTHORIZED, _S.DOWNLOADING)
_BEFORE_SERVING = (*_ASKING, _S.VERIFIED)


class Wait(NamedTuple):
    """`…` stands for what differs from time to time."""

    states: tuple[InstallState, ...]
    reason: str
    ends: str


WAITS = (
    Wait((*_ASKING, _S.RACING), "waiting: … is first (…)", "that version's step ends, which has a deadline"),
    Wait(_ASKING, "offline: it goes on when the broker can be reached", "the broker is reached"),
    Wait(_ASKING, "offline: this board's clock is not set, …", "the clock is set"),
    Wait(_BEFORE_SERVING, "attempt … of …: …; next in … s", "within 5 min; after the last attempt it has failed"),
    Wait((_S.ASSIGNED,), "no answer about the signed metadata …", "within 5 min it is asked again"),
    Wait((_S.AUTHORIZED, _S.DOWNLOADING), "the fleet sends nothing of file …", "within 5 min it is asked again"),
    Wait((_S.ASSIGNED,), "clock not set: …", "within 5 min it is asked again"),
    Wait(_BEFORE_SERVING, "no resources left …", "within 5 min it is tried again"),
    Wait(_BEFORE_SERVING, "no space left …", "1 MB more is free, or an hour has passed"),
    Wait((_S.VERIFIED,), "the race failed with … bytes free …", "1 MB more is free, or an hour has passed"),
    Wait((_S.DOWNLOADING,), "needs … MB and … MB reserve, … MB free: …", "there is space"),
    Wait((_S.DOWNLOADING, _S.VERIFIED, _S.PLACED), "waits: window opens …", "an update window is open"),
    Wait(
        (_S.DOWNLOADING, _S.VERIFIED, _S.PLACED),
        "waits: this board's clock is not set, …",
        "the clock is set, or an hour after the agent's start",
    ),
    Wait((_S.PLACED,), "in the shadow of … for … s", "that time has passed"),
    Wait(
        (_S.PLACED, _S.COMMITTED),
        "its worker cannot be started: …",
        "within a minute it is tried again; for want of space when 1 MB more is free, or in an hour",
    ),
    Wait(
        (_S.VERIFIED, _S.PLACED, _S.COMMITTED),
        "waiting: … starts alone, for the board ended while it was starting … times",
        "it has served for a minute, or has ended the board once more and is given up",
    ),
    Wait((_S.ON_TRIAL,), "on trial for … s", "that time has passed"),
    Wait((_S.COMMITTED,), "its worker ended (…); it starts again in … s", "within a minute"),
    Wait((_S.COMMITTED,), "waits: window opens …, to race anew: …", "an update window is open; it serves meanwhile"),
)
