"""What became of a version's serving worker, written into the record: its end, and which candidate serves in it.

Pure, and bounded as in outcomes.py: a worker that dies on trial fails the version, and one that dies after it hands
over to the next best candidate. A board that cannot start one for want of resources is no fault of the version.
"""

from __future__ import annotations

from random import Random

from regatta_agent.core.facts import Limits
from regatta_agent.core.installs import AgentRecord, Degradation, Install
from regatta_agent.core.standbys import distrusted, next_candidate
from regatta_agent.core.states import Event
from regatta_protocol.backoff import backoff_s
from regatta_protocol.errors import Exhausted, StorageFull
from regatta_protocol.ids import ModelRef
from regatta_protocol.messages import InstallState

__all__ = ["degraded", "starved", "winner_back", "worker_died"]

_S = InstallState
_WITH_WORKER = (_S.PLACED, _S.ON_TRIAL, _S.COMMITTED)
_LONG_LIFE_S = 300.0  # a worker that lived that long died for the first time


def worker_died(
    record: AgentRecord, ref: ModelRef, why: str, lived_s: float, now_s: float, rng: Random, limits: Limits
) -> AgentRecord:
    """Return the record after a serving worker ended unasked: start it again, go back, or take the next candidate."""
    install = record.find(ref)
    if install is None or install.state not in _WITH_WORKER:
        return record
    deaths = 1 if lived_s > _LONG_LIFE_S else install.deaths + 1
    if install.state is not _S.COMMITTED:
        if deaths >= limits.trial_deaths:
            reason = f"its worker ended {deaths} times on trial: {why}"
            return record.advanced(ref, Event.TRIAL_FAILED, reason=reason, deaths=deaths)
        again = Event.INTERRUPTED if install.state is _S.ON_TRIAL else None
        return record.put_off(ref, again, f"its worker ended on trial: {why}", None, deaths=deaths)
    following = next_candidate(install)
    # The first deaths of the winner and of who takes over wait for nothing, so that requests wait less than a second.
    wait_s = 0.0 if deaths <= limits.failover_deaths else backoff_s(deaths - limits.failover_deaths, 0.5, 60.0, rng)
    if deaths % limits.failover_deaths == 0 and following is not None:
        reason = f"{install.placement} ended its worker {limits.failover_deaths} times ({why}): {following} takes over"
        if following == install.winner:
            return _restarted(record, install, reason, now_s + wait_s, deaths, placement=following)
        since = install.degraded.since if install.degraded is not None else now_s
        told = Degradation(placement=following, reason=reason, since=since)
        given_up = install.given_up
        if install.placement in [one.placement for one in given_up]:  # it was tried again, and is no better
            given_up = distrusted(given_up, install.placement, reason)
        return record.advanced(
            ref, Event.FAILED_OVER, reason=reason, not_before=now_s + wait_s, placement=following, deaths=deaths,
            degraded=told, guarded=True, given_up=given_up, lost_starts=0,
        )  # fmt: skip
    reason = f"its worker ended ({why}); it starts again in {wait_s:.0f} s"
    return _restarted(record, install, reason, now_s + wait_s, deaths)


def starved(
    record: AgentRecord,
    ref: ModelRef,
    lack: StorageFull | Exhausted,
    now_s: float,
    rng: Random,
    limits: Limits,
    free_bytes: int | None = None,
) -> AgentRecord:
    """Return the record after a worker could not be started for want of the board's resources: it is tried again.

    That is no death: neither is a trial lost by it, nor does the next candidate take over. Where there was no space it
    waits as every job does: an hour, or until there are more than `free_bytes`.
    """
    install = record.find(ref)
    if install is None or install.state not in _WITH_WORKER:
        return record
    full = isinstance(lack, StorageFull)
    if full:
        wait_s = limits.full_disk_wait_s(rng)
    else:
        wait_s = backoff_s(min(install.waits, 5), limits.backoff_base_s, 60.0, rng)
    return record.changed(
        ref,
        reason=f"its worker cannot be started: {lack}",
        not_before=now_s + wait_s,
        full_at_bytes=free_bytes if full else None,
        waits=install.waits + 1,
    )


def degraded(record: AgentRecord, ref: ModelRef, said: Degradation, retried: tuple[float, ...]) -> AgentRecord:
    """Return the record after a worker said that another candidate than the winner serves."""
    install = record.find(ref)
    if install is None or install.state not in _WITH_WORKER:
        return record
    if install.degraded is not None:
        said = said.model_copy(update={"since": install.degraded.since})
    return record.changed(ref, degraded=said, retried=retried)


def winner_back(record: AgentRecord, ref: ModelRef, placement: str, retried: tuple[float, ...]) -> AgentRecord:
    """Return the record after a worker took the winner back."""
    install = record.find(ref)
    if install is None or install.state not in _WITH_WORKER or placement != install.winner:
        return record
    if install.placement == placement:
        return record.changed(ref, degraded=None, retried=retried)
    return record.advanced(ref, Event.TAKEN_BACK, placement=placement, degraded=None, retried=retried)


def _restarted(
    record: AgentRecord, install: Install, reason: str, not_before: float, deaths: int, **changes: str
) -> AgentRecord:
    """Return the record for a worker that is started again: what it had said of itself is past."""
    told = install.degraded if changes.get("placement", install.placement) != install.winner else None
    return record.changed(
        install.ref, reason=reason, not_before=not_before, full_at_bytes=None, deaths=deaths, degraded=told, **changes
    )  # fmt: skip
