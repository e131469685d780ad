"""Committed versions whose worker's start ends the board: counted boot by boot, given up, and tried again. Pure.

A delegate's driver that panics the kernel takes the agent with it, so nobody sees the end: what is seen is a mark,
written before the worker starts and taken away once it has served for a while, that is of another run of the kernel.

Rules:
1. After `Limits.lost_starts` such runs in a row the placement is given up: the next candidate that does not share its
   accelerator serves, after the last one the version before. What was tried again is given up after one.
2. The last run before that the version starts alone: no other worker starts and no race begins beside it, so that
   nobody is given up for what another did.
3. An end of the agent alone, within the same run of the kernel, or when it was asked to end, is not counted.
4. Power may have been cut by chance. So what is given up is tried again when the agent has run for some hours, a
   bounded number of times, and whenever a runtime, a driver or the kernel is another. These are monotonic times, since
   a board whose clock starts at 1970 would find any other wait over at each boot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regatta_agent.core.due import due_later
from regatta_agent.core.facts import Advance, Facts, Limits, Revise, Step, WorkerFacts
from regatta_agent.core.installs import AgentRecord, Degradation, GivenUp, Install, Starting
from regatta_agent.core.rerace import successor_died
from regatta_agent.core.standbys import distrusted, safe
from regatta_agent.core.states import Event
from regatta_protocol.ids import ModelName
from regatta_protocol.messages import InstallState

__all__ = [
    "counted",
    "fallen_back",
    "given_up",
    "marked",
    "proved",
    "restored",
    "starts_alone",
    "stopped",
    "tried_again",
]

_S = InstallState
_ENDED = "the board ended while it was starting"


def counted(record: AgentRecord, boot: str | None) -> AgentRecord:
    """Return the record after a start of the agent in the run `boot` of the kernel: what ended the last one counts."""
    for install in list(record.all()):
        mark = install.starting
        if mark is None:
            continue
        record = record.changed(install.ref, starting=None)
        if boot is None or mark.boot == boot:
            continue
        if install.state in (_S.PLACED, _S.ON_TRIAL) and mark.placement == install.placement:
            record = _lost_again(record, install, mark.placement)
        elif install.state is _S.COMMITTED and mark.placement == install.placement:
            record = record.changed(install.ref, lost_starts=install.lost_starts + 1)
        elif install.state is _S.COMMITTED and install.successor is not None:
            record = successor_died(record, install.ref, _ENDED)
    return record


def stopped(record: AgentRecord) -> AgentRecord:
    """Return the record of an agent that ends because it was asked to: whatever ends the board later is no worker."""
    for install in list(record.all()):
        if install.starting is not None:
            record = record.changed(install.ref, starting=None)
    return record


def marked(install: Install, placement: str, facts: Facts) -> list[Step]:
    """Return the step that must be on disk before a worker is started for `placement`; none when it is."""
    tried_again = any(one.placement == placement for one in install.given_up)
    if facts.boot is None or (install.state is not _S.COMMITTED and not tried_again):
        return []
    mark = Starting(placement=placement, boot=facts.boot)
    return [Revise(install.ref, {"starting": mark})] if install.starting != mark else []


def proved(install: Install, worker: WorkerFacts, facts: Facts, limits: Limits) -> list[Step]:
    """Return the step that takes note of a start that ended well, once what serves has served for long enough."""
    mark = install.starting
    successor = install.successor.placement if install.successor is not None else None
    if mark is not None and mark.placement not in (install.placement, successor):
        return [Revise(install.ref, {"starting": None})]  # of a successor that is gone
    if worker.ready_for_s < limits.proof_s or mark is None or mark.placement != install.placement:
        return []
    others = tuple(one for one in install.given_up if one.placement != install.placement)
    changes: dict[str, Any] = {"starting": None, "lost_starts": 0, "given_up": others}
    winner = next((one for one in others if one.placement == install.winner), None)
    if winner is not None and install.degraded is None:
        changes["degraded"] = Degradation(placement=mark.placement, reason=winner.reason, since=facts.now_s)
    return [Revise(install.ref, changes)]


def starts_alone(record: AgentRecord, facts: Facts, limits: Limits) -> tuple[Install, str] | None:
    """Return the version beside whose worker nothing else may start now, and in words why; None when there is none."""
    for install in record.all():
        waits = due_later(install, facts)
        if install.state is _S.COMMITTED and install.lost_starts >= limits.lost_starts - 1 > 0 and not waits:
            return install, f"waiting: {install.ref} starts alone, for {_ENDED} {install.lost_starts} times"
    return None


def given_up(install: Install, facts: Facts, limits: Limits) -> list[Step]:
    """Return the step away from a placement that has ended the board too often: to the next candidate, or to none."""
    placement = install.placement
    again = any(one.placement == placement for one in install.given_up)
    if placement is None or install.lost_starts < (1 if again else limits.lost_starts):
        return []
    times = f"{install.lost_starts} times" if install.lost_starts > 1 else "again"
    what = f"{placement} is given up: {_ENDED}, {times}"
    bad = distrusted(install.given_up, placement, what, facts.versions)
    fresh = {"given_up": bad, "lost_starts": 0, "starting": None, "successor": None, "deaths": 0}
    left = safe(install.model_copy(update={"given_up": bad}))
    when = _when(bad[-1], limits)
    if not left:
        reason = f"given up: {_ENDED}, {times}, and no other candidate is left; {when}"
        return [Advance(install.ref, Event.GAVE_UP, {**fresh, "degraded": None, "reason": reason})]
    reason = f"{what}; {left[0]} takes over; {when}"
    told = Degradation(placement=left[0], reason=reason, since=facts.now_s)
    return [Advance(install.ref, Event.FAILED_OVER, {**fresh, "placement": left[0], "degraded": told})]


def tried_again(record: AgentRecord, install: Install, facts: Facts, limits: Limits) -> list[Step]:
    """Return the step that begins to try a given-up winner again, beside what serves, or none while it is not due."""
    entry = next((one for one in install.given_up if one.placement == install.winner), None)
    quiet = all(one.starting is None for one in record.all())
    if entry is None or entry.placement == install.placement or install.successor is not None or not quiet:
        return []
    if not _due(entry, facts, limits):
        return []
    return [Revise(install.ref, {"successor": install.race, "given_up": _with_versions(install, entry, facts)})]


def restored(record: AgentRecord, install: Install, facts: Facts, limits: Limits) -> list[Step]:
    """Return the step that puts a version that was given up on trial again, as it was, or none while it is not due."""
    entry = next((one for one in install.given_up if one.placement == install.placement), None)
    stored = facts.stored.get(install.ref)
    whole = stored is not None and stored.missing == 0 and stored.manifest_digest == install.manifest_digest
    if entry is None or not whole or install.race is None or not _due(entry, facts, limits):
        return []
    if any(one.starting is not None for one in record.all()):
        return []
    changes = {"attempt": 0, "deaths": 0, "agreement": None, "given_up": _with_versions(install, entry, facts)}
    return [Advance(install.ref, Event.RESTORED, {**changes, "reason": f"it is tried again after: {entry.reason}"})]


def fallen_back(record: AgentRecord, name: ModelName, wanted: Install, facts: Facts) -> list[Step]:
    """Return the step that lets the version before serve again, when `wanted` was given up and nothing else serves."""
    versions = record.installs.get(name, ())
    if wanted.state is not _S.FAILED or not wanted.given_up or record.in_state(name, _S.COMMITTED) is not None:
        return []
    before = [one for one in versions if one.state is _S.RETIRED and one.committed_at is not None]
    for install in sorted(before, key=lambda one: one.committed_at or 0.0, reverse=True):
        stored = facts.stored.get(install.ref)
        left = safe(install)
        if left and stored is not None and stored.missing == 0 and stored.manifest_digest == install.manifest_digest:
            placement = install.placement if install.placement in left else left[0]
            changes = {"reason": f"{wanted.ref} was given up", "placement": placement, "deaths": 0, "lost_starts": 0}
            return [Advance(install.ref, Event.FELL_BACK, changes)]
    return []


def _lost_again(record: AgentRecord, install: Install, placement: str) -> AgentRecord:
    """Return the record after a version that was tried again as a whole ended the board once more."""
    reason = f"given up: {_ENDED}, again"
    bad = distrusted(install.given_up, placement, reason)
    if install.state is _S.ON_TRIAL:
        record = record.advanced(install.ref, Event.INTERRUPTED)
    return record.advanced(install.ref, Event.GAVE_UP, reason=reason, given_up=bad)


def _due(entry: GivenUp, facts: Facts, limits: Limits) -> bool:
    if entry.versions and facts.versions and entry.versions != facts.versions:
        return True
    waits_s: Sequence[float] = limits.try_again_after_s
    return entry.times <= len(waits_s) and facts.running_s >= waits_s[entry.times - 1]


def _with_versions(install: Install, entry: GivenUp, facts: Facts) -> tuple[GivenUp, ...]:
    """Return what is given up, with the versions that it is tried with now: each other version is one more chance."""
    fresh = entry.model_copy(update={"versions": dict(facts.versions)})
    return tuple(fresh if one is entry else one for one in install.given_up)


def _when(entry: GivenUp, limits: Limits) -> str:
    other = "with another runtime, driver or kernel"
    if entry.times > len(limits.try_again_after_s):
        return f"tried again {other}"
    return f"tried again when the agent has run for {limits.try_again_after_s[entry.times - 1] / 3600:g} h, or {other}"
