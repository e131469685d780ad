"""What happened, written into the record: from a record and an outcome to the next record.

Pure. The loop persists the result before it acts on it. Failures are bounded here: each costs an attempt and a wait
with full jitter, and the last one, or one that no retry can cure, fails the version.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from regatta_agent.core import batches
from regatta_agent.core.facts import Limits
from regatta_agent.core.installs import AgentRecord, Degradation, Install, RaceSummary
from regatta_agent.core.standbys import next_candidate
from regatta_agent.core.states import Event
from regatta_agent.errors import NotSent, Unanswered, WrongBlob, WrongClock
from regatta_protocol.errors import Exhausted, RegattaError, Rejected, StorageFull, Untrusted
from regatta_protocol.ids import Digest, ModelRef
from regatta_protocol.manifest import Policy
from regatta_protocol.measurement import CandidateResult, Outcome, RaceReport
from regatta_protocol.messages import Assignment, InstallState, SignedAssignment

__all__ = [
    "authorized",
    "degraded",
    "failed",
    "manifest_stored",
    "raced",
    "recovered",
    "starved",
    "summary_of",
    "take_up",
    "winner_back",
    "worker_died",
]

_S = InstallState
_WITH_WORKER = (_S.PLACED, _S.ON_TRIAL, _S.COMMITTED)
_LONG_LIFE_S = 300.0  # a worker that lived that long died for the first time


def take_up(record: AgentRecord, signed: SignedAssignment, assignment: Assignment) -> AgentRecord:
    """Return the record with a newer assignment; an older or equal generation changes nothing.

    The floor of time is the newest word of the fleet's key, and not the highest: a server whose clock was years ahead
    for an hour must not let all metadata be expired here for years.
    """
    if record.assignment is not None and assignment.generation <= record.generation:
        return record
    return record.model_copy(
        update={
            "generation": assignment.generation,
            "signed": signed,
            "assignment": assignment,
            "batch": batches.taken_up(record.batch, assignment.batch),
            "time_floor": assignment.issued_at,
        }
    )


def authorized(
    record: AgentRecord, ref: ModelRef, digest: Digest, size_bytes: int, role_versions: dict[str, int]
) -> AgentRecord:
    """Return the record with the manifest's digest from the signed metadata, and a risen high-water mark."""
    raised = {**record.role_versions}
    for role, version in role_versions.items():
        raised[role] = max(version, raised.get(role, 0))
    record = record.model_copy(update={"role_versions": raised})
    install = record.find(ref)
    if install is None or install.state is not _S.ASSIGNED:
        return record
    return record.advanced(ref, Event.AUTHORIZED, manifest_digest=digest, manifest_bytes=size_bytes)


def manifest_stored(record: AgentRecord, ref: ModelRef) -> AgentRecord:
    """Return the record with the manifest on disk."""
    install = record.find(ref)
    known = install is not None and install.state is _S.AUTHORIZED
    return record.advanced(ref, Event.MANIFEST_STORED) if known else record


def summary_of(
    report: RaceReport,
    policy: Policy,
    versions: Mapping[str, str] | None = None,
    at: float | None = None,
    assigned: Policy | None = None,
) -> RaceSummary | None:
    """Return what a race decided, or None when it placed nothing.

    Args:
        report: of the race.
        policy: that it was judged by.
        versions: of runtimes, drivers and kernel at the time.
        at: when, in seconds since 1970.
        assigned: the policy, when the fleet had assigned it; None when it is the bundle's.
    """
    winner = report.placed()
    if winner is None:
        return None
    return RaceSummary(
        placement=winner.id,
        ranked=(winner.id, *(one.id for one in _sound(report) if one.id != winner.id)),
        accuracy=winner.accuracy,
        latency=winner.latency,
        power=winner.power,
        max_trial_accuracy_drop=policy.max_trial_accuracy_drop,
        shadow_s=policy.shadow_s,
        policy=assigned,
        versions=dict(versions or {}),
        at=at,
        basis=report.basis,
    )


def raced(record: AgentRecord, report: RaceReport, ref: ModelRef, summary: RaceSummary | None) -> AgentRecord:
    """Return the record with the race's winner, or with the version failed for want of one."""
    install = record.find(ref)
    if install is None or install.state is not _S.RACING:
        return record
    measured = max((one.accuracy for one in report.candidates if one.accuracy), key=lambda a: a.value, default=None)
    if summary is None:
        reason = f"no candidate can serve it here: {report.reason}"
        return record.advanced(ref, Event.GAVE_UP, reason=reason, measured=measured)
    return record.advanced(
        ref, Event.PLACEMENT_FOUND, race=summary, measured=measured, placement=summary.placement, deaths=0,
        degraded=None, guarded=False, retried=(), rerace=None, successor=None,
    )  # fmt: skip


def failed(
    record: AgentRecord,
    ref: ModelRef,
    error: RegattaError,
    now_s: float,
    rng: Random,
    limits: Limits,
    free_bytes: int | None = None,
) -> AgentRecord:
    """Return the record after the job of `ref` failed: a later try, or the end.

    - StorageFull waits an hour, or until there are more than `free_bytes` (planner.py).
    - NotSent is tried again soon: when the connection is gone, the planner waits for it.
    - Unanswered waits for the fleet, WrongClock for the right time, Exhausted for the board: like StorageFull they are
      no fault of the version, so they cost no attempt.
    - A file with a wrong digest is fetched once more, then the version fails.
    - Untrusted metadata may be stale, so it is asked for again, within the attempts.
    - Anything else that is Rejected fails the version at once.
    """
    install = record.find(ref)
    if install is None:
        return record
    again = Event.INTERRUPTED if install.state is _S.RACING else None
    if isinstance(error, StorageFull):
        not_before, waits = now_s + _spaced(rng, limits), install.waits + 1
        return _later(record, install, again, str(error), not_before, waits=waits, full_at_bytes=free_bytes)
    if isinstance(error, NotSent):
        return _later(record, install, again, str(error), now_s + rng.uniform(0.1, 1.0) * limits.backoff_base_s)
    if isinstance(error, Unanswered | WrongClock | Exhausted):
        wait_s = _jittered(rng, limits.backoff_base_s, limits.backoff_cap_s, install.waits)
        return _later(record, install, again, str(error), now_s + wait_s, waits=install.waits + 1)
    attempt = install.attempt + 1
    if isinstance(error, WrongBlob) and error.digest not in install.bad_digests:
        reason = f"{error}; it is fetched once more"
        return _later(
            record, install, again, reason, None, attempt=attempt, bad_digests=(*install.bad_digests, error.digest)
        )
    final = isinstance(error, Rejected) and not isinstance(error, Untrusted)
    if final or attempt >= limits.max_attempts:
        reason = str(error) if final else f"{error}; given up after {attempt} attempts"
        return _ended(record, install, reason, attempt)
    wait_s = _jittered(rng, limits.backoff_base_s, limits.backoff_cap_s, install.attempt)
    reason = f"attempt {attempt} of {limits.max_attempts}: {error}; next in {wait_s:.0f} s"
    return _later(record, install, again, reason, now_s + wait_s, attempt=attempt)


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
        return _later(record, install, again, f"its worker ended on trial: {why}", None, deaths=deaths)
    following = next_candidate(install)
    # The first deaths of the winner and of who takes over wait for nothing, so that requests wait less than a second.
    wait_s = 0.0 if deaths <= limits.failover_deaths else _jittered(rng, 0.5, 60.0, deaths - limits.failover_deaths)
    if deaths % limits.failover_deaths == 0 and following is not None:
        reason = f"{install.placement} ended its worker {limits.failover_deaths} times ({why}): {following} takes over"
        if following == install.winner:
            return _restarted(record, install, reason, now_s + wait_s, deaths, placement=following)
        since = install.degraded.since if install.degraded is not None else now_s
        told = Degradation(placement=following, reason=reason, since=since)
        return record.advanced(
            ref, Event.FAILED_OVER, reason=reason, not_before=now_s + wait_s, placement=following, deaths=deaths,
            degraded=told, guarded=True,
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
    wait_s = _spaced(rng, limits) if full else _jittered(rng, limits.backoff_base_s, 60.0, min(install.waits, 5))
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


def recovered(record: AgentRecord, limits: Limits) -> AgentRecord:
    """Return the record as it stands after a start: what was in the middle of a child's work is done again."""
    record = record.model_copy(update={"batch": batches.recovered(record.batch, limits)})
    for install in list(record.all()):
        if install.degraded is not None and install.placement == install.winner:
            record = record.changed(install.ref, degraded=None)  # its worker is gone, and the next one tries the winner
        if install.racing_again:
            record = record.changed(install.ref, racing_again=False)  # again after the interval, not at every start
        if install.state not in (_S.RACING, _S.ON_TRIAL):
            continue
        attempt = install.attempt + 1
        if attempt >= limits.max_attempts:
            reason = f"the agent ended {attempt} times while it was {install.state}"
            record = _ended(record, install, reason, attempt)
        else:
            reason = f"the agent was started again while it was {install.state}"
            record = record.advanced(install.ref, Event.INTERRUPTED, reason=reason, attempt=attempt)
    return record


def _later(
    record: AgentRecord,
    install: Install,
    event: Event | None,
    reason: str,
    not_before: float | None,
    **changes: int | tuple[Digest, ...] | None,
) -> AgentRecord:
    changes = {"full_at_bytes": None, **changes}  # an earlier want of space is no reason to go on sooner
    if event is None:
        return record.changed(install.ref, reason=reason, not_before=not_before, **changes)
    return record.advanced(install.ref, event, reason=reason, not_before=not_before, **changes)


def _ended(record: AgentRecord, install: Install, reason: str, attempt: int) -> AgentRecord:
    event = Event.TRIAL_FAILED if install.state is _S.ON_TRIAL else Event.GAVE_UP
    return record.advanced(install.ref, event, reason=reason, attempt=attempt)


def _jittered(rng: Random, base_s: float, cap_s: float, tries: int) -> float:
    """Return a wait in [0, min(cap, base · 2^tries)): full jitter (AWS Architecture Blog, 2015)."""
    return rng.uniform(0.0, min(cap_s, base_s * 2.0 ** min(tries, 30)))


def _spaced(rng: Random, limits: Limits) -> float:
    """Return the wait after a disk was found full, so long that there is at most one try an hour."""
    return rng.uniform(limits.space_wait_s, 1.1 * limits.space_wait_s)


def _restarted(
    record: AgentRecord, install: Install, reason: str, not_before: float, deaths: int, **changes: str
) -> AgentRecord:
    """Return the record for a worker that is started again: what it had said of itself is past."""
    told = install.degraded if changes.get("placement", install.placement) != install.winner else None
    return record.changed(
        install.ref, reason=reason, not_before=not_before, full_at_bytes=None, deaths=deaths, degraded=told, **changes
    )  # fmt: skip


def _sound(report: RaceReport) -> list[CandidateResult]:
    """Return the candidates that may serve, fastest first."""
    sound = [one for one in report.candidates if one.outcome in (Outcome.MEASURED, Outcome.DROPPED) and one.latency]
    return sorted(sound, key=lambda one: one.latency.p50_us if one.latency is not None else 0.0)
