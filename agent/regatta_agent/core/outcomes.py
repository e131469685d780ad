"""What came of an assignment, a job or a start of the agent, written into the record: from a record to the next one.

Pure. The loop persists the result before it acts on it. Failures are bounded here: each costs an attempt and a wait
with full jitter, and the last one, or one that no retry can cure, fails the version. What becomes of a serving worker
is in worker_outcomes.py, of a new race beside one in rerace.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from regatta_agent.core import batches, boots
from regatta_agent.core.facts import Limits
from regatta_agent.core.installs import AgentRecord, Install, RaceSummary
from regatta_agent.core.states import Event
from regatta_agent.core.windows import waits_for_window
from regatta_agent.errors import NotSent, Unanswered, WrongBlob, WrongClock
from regatta_protocol.errors import Exhausted, RegattaError, Rejected, StorageFull, Untrusted
from regatta_protocol.ids import Digest, ModelRef
from regatta_protocol.manifest import Policy
from regatta_protocol.measurement import CandidateResult, Outcome, RaceReport
from regatta_protocol.messages import Assignment, InstallState, SignedAssignment

__all__ = [
    "authorized",
    "failed",
    "manifest_stored",
    "raced",
    "recovered",
    "summary_of",
    "take_up",
]

_S = InstallState


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
        degraded=None, guarded=False, retried=(), rerace=None, successor=None, starting=None,
        lost_starts=0, given_up=(),
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

    - StorageFull waits an hour, or until there are more than `free_bytes` (due.py).
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
        not_before, waits = now_s + limits.full_disk_wait_s(rng), install.waits + 1
        return record.put_off(ref, again, str(error), not_before, waits=waits, full_at_bytes=free_bytes)
    if isinstance(error, NotSent):
        return record.put_off(ref, again, str(error), now_s + rng.uniform(0.1, 1.0) * limits.backoff_base_s)
    if isinstance(error, Unanswered | WrongClock | Exhausted):
        wait_s = limits.retry_wait_s(install.waits, rng)
        return record.put_off(ref, again, str(error), now_s + wait_s, waits=install.waits + 1)
    attempt = install.attempt + 1
    if isinstance(error, WrongBlob) and error.digest not in install.bad_digests:
        reason = f"{error}; it is fetched once more"
        bad_digests = (*install.bad_digests, error.digest)
        return record.put_off(ref, again, reason, None, attempt=attempt, bad_digests=bad_digests)
    final = isinstance(error, Rejected) and not isinstance(error, Untrusted)
    if final or attempt >= limits.max_attempts:
        reason = str(error) if final else f"{error}; given up after {attempt} attempts"
        return _ended(record, install, reason, attempt)
    wait_s = limits.retry_wait_s(install.attempt, rng)
    reason = f"attempt {attempt} of {limits.max_attempts}: {error}; next in {wait_s:.0f} s"
    return record.put_off(ref, again, reason, now_s + wait_s, attempt=attempt)


def recovered(record: AgentRecord, limits: Limits, boot: str | None = None) -> AgentRecord:
    """Return the record as it stands after a start: what was in the middle of a child's work is done again.

    That is an attempt, for it may be what ended the board: a race, a worker that was being started, a trial. A
    committed version has no attempts; boots.py counts what of its starts ended the board.
    """
    record = record.model_copy(update={"batch": batches.recovered(record.batch, limits)})
    record = boots.counted(record, boot)
    for install in list(record.all()):
        if install.degraded is not None and install.placement == install.winner:
            record = record.changed(install.ref, degraded=None)  # its worker is gone, and the next one tries the winner
        if install.racing_again:
            record = record.changed(install.ref, racing_again=False)  # again after the interval, not at every start
        starting = install.state is _S.PLACED and not waits_for_window(install) and install.full_at_bytes is None
        if install.state not in (_S.RACING, _S.ON_TRIAL) and not starting:
            continue
        attempt = install.attempt + 1
        if attempt >= limits.max_attempts:
            reason = f"the agent ended {attempt} times while it was {install.state}"
            record = _ended(record, install, reason, attempt)
        else:
            reason = f"the agent was started again while it was {install.state}"
            if starting:
                record = record.changed(install.ref, reason=reason, attempt=attempt)
            else:
                record = record.advanced(install.ref, Event.INTERRUPTED, reason=reason, attempt=attempt)
    return record


def _ended(record: AgentRecord, install: Install, reason: str, attempt: int) -> AgentRecord:
    event = Event.TRIAL_FAILED if install.state is _S.ON_TRIAL else Event.GAVE_UP
    return record.advanced(install.ref, event, reason=reason, attempt=attempt)


def _sound(report: RaceReport) -> list[CandidateResult]:
    """Return the candidates that may serve, fastest first."""
    sound = [one for one in report.candidates if one.outcome in (Outcome.MEASURED, Outcome.DROPPED) and one.latency]
    return sorted(sound, key=lambda one: one.latency.p50_us if one.latency is not None else 0.0)
