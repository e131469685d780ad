"""The life of one version on a device, as one table, and the diagram that the documentation shows of it.

Rules:
1. A pair of state and event that is not in the table raises, and the caller's state stays as it was.
2. A transition has no side effects. What must be done in a state is the planner's to say (planner.py).
3. The running version never leaves COMMITTED until another one is COMMITTED, nobody wants the model, a file of it is
   lost, or the board kept ending while its worker was starting, whatever its placement.
"""

from __future__ import annotations

from types import MappingProxyType

from regatta_agent.core.waits import WAITS
from regatta_protocol.enums import StrEnum
from regatta_protocol.errors import Misuse
from regatta_protocol.messages import InstallState

__all__ = ["IN_PROGRESS", "SETTLED", "TRANSITIONS", "Event", "next_state", "render_mermaid"]


class Event(StrEnum):
    """What can happen to a version."""

    AUTHORIZED = "authorized"  # the signed metadata names its manifest
    MANIFEST_STORED = "manifest_stored"
    FILES_STORED = "files_stored"  # every file is here with its digest
    RACE_STARTED = "race_started"
    INTERRUPTED = "interrupted"  # the agent or its child ended in the middle: do that step again
    PLACEMENT_FOUND = "placement_found"
    WORKER_READY = "worker_ready"
    TRIAL_PASSED = "trial_passed"
    TRIAL_FAILED = "trial_failed"
    FAILED_OVER = "failed_over"  # the placement kept dying; the next best candidate takes its place
    TAKEN_BACK = "taken_back"  # the winner proved sound again and serves
    PLACED_ANEW = "placed_anew"  # a new race found a better placement, whose worker is ready
    FILES_LOST = "files_lost"  # a file that was here is gone or has another length
    GAVE_UP = "gave_up"  # rejected for good, or out of attempts
    WITHDRAWN = "withdrawn"  # the desired state no longer wants it
    RESTORED = "restored"  # wanted again, and still on disk with its placement
    FELL_BACK = "fell_back"  # the version after it was given up, and it serves again, having passed its trial before
    REASSIGNED = "reassigned"  # wanted anew, from the start


_S = InstallState
_E = Event

IN_PROGRESS = frozenset({_S.ASSIGNED, _S.AUTHORIZED, _S.DOWNLOADING, _S.VERIFIED, _S.RACING, _S.PLACED, _S.ON_TRIAL})
SETTLED = frozenset(_S) - IN_PROGRESS

TRANSITIONS = MappingProxyType(
    {
        (_S.ASSIGNED, _E.AUTHORIZED): _S.AUTHORIZED,
        (_S.ASSIGNED, _E.GAVE_UP): _S.FAILED,
        (_S.ASSIGNED, _E.WITHDRAWN): _S.RETIRED,
        (_S.AUTHORIZED, _E.MANIFEST_STORED): _S.DOWNLOADING,
        (_S.AUTHORIZED, _E.GAVE_UP): _S.FAILED,
        (_S.AUTHORIZED, _E.WITHDRAWN): _S.RETIRED,
        (_S.DOWNLOADING, _E.FILES_STORED): _S.VERIFIED,
        (_S.DOWNLOADING, _E.FILES_LOST): _S.ASSIGNED,
        (_S.DOWNLOADING, _E.GAVE_UP): _S.FAILED,
        (_S.DOWNLOADING, _E.WITHDRAWN): _S.RETIRED,
        (_S.VERIFIED, _E.RACE_STARTED): _S.RACING,
        (_S.VERIFIED, _E.FILES_LOST): _S.ASSIGNED,
        (_S.VERIFIED, _E.GAVE_UP): _S.FAILED,
        (_S.VERIFIED, _E.WITHDRAWN): _S.RETIRED,
        (_S.RACING, _E.PLACEMENT_FOUND): _S.PLACED,
        (_S.RACING, _E.INTERRUPTED): _S.VERIFIED,
        (_S.RACING, _E.GAVE_UP): _S.FAILED,
        (_S.RACING, _E.WITHDRAWN): _S.RETIRED,
        (_S.PLACED, _E.WORKER_READY): _S.ON_TRIAL,
        (_S.PLACED, _E.TRIAL_FAILED): _S.ROLLED_BACK,
        (_S.PLACED, _E.FILES_LOST): _S.ASSIGNED,
        (_S.PLACED, _E.GAVE_UP): _S.FAILED,
        (_S.PLACED, _E.WITHDRAWN): _S.RETIRED,
        (_S.ON_TRIAL, _E.TRIAL_PASSED): _S.COMMITTED,
        (_S.ON_TRIAL, _E.TRIAL_FAILED): _S.ROLLED_BACK,
        (_S.ON_TRIAL, _E.INTERRUPTED): _S.PLACED,
        (_S.ON_TRIAL, _E.WITHDRAWN): _S.RETIRED,
        (_S.COMMITTED, _E.FAILED_OVER): _S.COMMITTED,
        (_S.COMMITTED, _E.TAKEN_BACK): _S.COMMITTED,
        (_S.COMMITTED, _E.PLACED_ANEW): _S.COMMITTED,
        (_S.COMMITTED, _E.FILES_LOST): _S.ASSIGNED,
        (_S.COMMITTED, _E.GAVE_UP): _S.FAILED,
        (_S.COMMITTED, _E.WITHDRAWN): _S.RETIRED,
        (_S.RETIRED, _E.RESTORED): _S.PLACED,
        (_S.RETIRED, _E.FELL_BACK): _S.COMMITTED,
        (_S.RETIRED, _E.REASSIGNED): _S.ASSIGNED,
        (_S.ROLLED_BACK, _E.REASSIGNED): _S.ASSIGNED,
        (_S.FAILED, _E.RESTORED): _S.PLACED,
        (_S.FAILED, _E.REASSIGNED): _S.ASSIGNED,
    }
)


def next_state(state: InstallState, event: Event) -> InstallState:
    """Return the state after `event`.

    Raises:
        Misuse: when the table has no such pair.
    """
    try:
        return TRANSITIONS[(state, event)]
    except KeyError:
        raise Misuse(f"a version that is {state} cannot take the event {event}: see docs/agent-states.md") from None


def render_mermaid() -> str:
    """Return docs/agent-states.md: the table as a Mermaid diagram, and what a version may wait for."""
    pairs: dict[tuple[InstallState, InstallState], list[str]] = {}
    for (state, event), following in TRANSITIONS.items():
        pairs.setdefault((state, following), []).append(event)
    lines = [
        "# The states of a version on a device",
        "",
        "Generated from the table in `agent/regatta_agent/core/states.py` by `regatta-agent states`; a test keeps it",
        "current. Every step is written to the state folder before it is acted on.",
        "",
        "```mermaid",
        "stateDiagram-v2",
        f"    [*] --> {InstallState.ASSIGNED}",
    ]
    lines += [f"    {state} --> {following}: {', '.join(events)}" for (state, following), events in pairs.items()]
    lines += [
        "```",
        "",
        "## What a version waits for",
        "",
        "`regatta-agent status` and `regatta device show` tell why. Each ends by itself, and a newer",
        "generation ends any of them. A test holds the planner to this table (`core/waits.py`).",
        "",
        "| reason | in | goes on when |",
        "|---|---|---|",
    ]
    lines += [f"| `{wait.reason}` | {', '.join(wait.states)} | {wait.ends} |" for wait in WAITS]
    lines += [""]
    return "\n".join(lines)
