"""From what is remembered and what is the case to what to do next: `plan(record, facts)`.

Pure, and called at every turn of the loop. The loop records all `Advance` and `Revise` steps durably and plans
again; only when there are none left does it carry out the others. Invariants (tests/unit/agent/test_planner.py):

- it converges: with unchanged facts, recorded steps run out;
- the newest generation rules: what it does not want is withdrawn, whatever was in progress;
- the committed version keeps its worker and socket until another is committed or nobody wants the model;
- a version that failed or was rolled back is not tried again, unless another rollout asks for it, or, where nothing
  could be placed, another policy.
"""

from __future__ import annotations

from typing import Any

from regatta_agent.core import boots
from regatta_agent.core.due import due_later
from regatta_agent.core.facts import (
    Advance,
    Begin,
    Facts,
    JobKind,
    Limits,
    Revise,
    Step,
)
from regatta_agent.core.health import judge_accuracy, judge_shadow, judge_trial
from regatta_agent.core.installs import AgentRecord, Install
from regatta_agent.core.rerace import rerace_reason
from regatta_agent.core.standbys import start_of
from regatta_agent.core.states import IN_PROGRESS, Event
from regatta_agent.core.succession import succeeded
from regatta_agent.core.switching import JOBS, WITH_WORKER, cancelled, collected, needed_bytes, switched
from regatta_agent.core.windows import window_wait
from regatta_protocol.ids import ModelName, ModelRef
from regatta_protocol.messages import DesiredModel, InstallState

__all__ = ["plan", "wake_at"]

_S = InstallState

_RACES = (JobKind.RACE, JobKind.RERACE)
_NEW_START: dict[str, Any] = {
    "attempt": 0, "waits": 0, "deaths": 0, "bad_digests": (), "degraded": None, "guarded": False,
    "successor": None, "rerace": None, "racing_again": False, "agreement": None, "starting": None, "lost_starts": 0,
    "given_up": (),
}  # fmt: skip


def plan(record: AgentRecord, facts: Facts, limits: Limits) -> list[Step]:
    """Return the steps to take now, in order."""
    steps: list[Step] = []
    desired = record.assignment.models if record.assignment is not None else {}
    for name in sorted({*record.installs, *desired}):
        steps += _want(record, facts, limits, name, desired.get(name))
    moved = {step.ref for step in steps if isinstance(step, Advance)}
    begun: set[JobKind] = set()
    for install in (one for one in record.all() if one.ref not in moved):
        for step in _pursue(record, facts, limits, install):
            if isinstance(step, Begin) and step.kind in begun:
                continue  # one of a kind at a time; the next plan says what it waits for
            if isinstance(step, Begin):
                begun |= {*_RACES} if step.kind in _RACES else {step.kind}
            steps.append(step)
    if any(isinstance(step, Advance | Revise) for step in steps):
        return steps
    return steps + cancelled(record, facts) + switched(record, facts) + collected(record, facts, limits)


def wake_at(record: AgentRecord, facts: Facts) -> float | None:
    """Return when (seconds since 1970) a wait or a trial ends next, or None."""
    times = [install.not_before for install in record.all() if due_later(install, facts)]
    times += [install.opens_at for install in record.all() if (install.opens_at or 0.0) > facts.now_s]
    for install in record.all():
        worker = facts.workers.get(install.ref)
        shadow_s = install.race.shadow_s if install.race is not None else 0.0
        if install.state is _S.PLACED and worker is not None and worker.ready and worker.ready_for_s < shadow_s:
            times.append(facts.now_s + shadow_s - worker.ready_for_s)
        if install.state is _S.ON_TRIAL and worker is not None:
            times.append(facts.now_s + max(0.0, install.tried_after_s - worker.ready_for_s))
    return min((time for time in times if time is not None), default=None)


def _want(
    record: AgentRecord, facts: Facts, limits: Limits, name: ModelName, wanted: DesiredModel | None
) -> list[Step]:
    """Withdraw what is not wanted, and take up what is."""
    steps: list[Step] = []
    version = wanted.version if wanted is not None else None
    why = f"generation {record.generation} wants {name}:{version}" if wanted else "no longer wanted"
    replaced_by = next(
        (i.version for i in record.installs.get(name, ()) if i.state is _S.COMMITTED and i.version == version), None
    )
    for install in record.installs.get(name, ()):
        obsolete = install.state in IN_PROGRESS or (
            install.state is _S.COMMITTED and (wanted is None or replaced_by is not None)
        )
        if install.version != version and obsolete:
            steps.append(Advance(install.ref, Event.WITHDRAWN, {"reason": why}))
    if wanted is None:
        return steps
    ref = ModelRef(name, wanted.version)
    known = record.find(ref)
    changes: dict[str, Any] = {"rollout": wanted.rollout, "trial_s": wanted.trial_s, "policy": wanted.policy}
    if known is None:
        steps.append(Advance(ref, Event.REASSIGNED, changes))
    elif known.state is _S.RETIRED:
        event = Event.RESTORED if _complete(facts, known) and known.race is not None else Event.REASSIGNED
        steps.append(Advance(ref, event, {**_NEW_START, **changes, "placement": known.winner}))
    elif known.state in (_S.FAILED, _S.ROLLED_BACK):
        if known.rollout != wanted.rollout or (known.state is _S.FAILED and known.policy != wanted.policy):
            steps.append(Advance(ref, Event.REASSIGNED, {**_NEW_START, **changes}))
        elif known.state is _S.FAILED and known.given_up:
            steps += boots.fallen_back(record, name, known, facts) or boots.restored(record, known, facts, limits)
    elif (known.rollout, known.trial_s, known.policy) != (wanted.rollout, wanted.trial_s, wanted.policy):
        steps.append(Revise(ref, {**changes, "rerace": None} if known.policy != wanted.policy else changes))
    return steps


def _pursue(record: AgentRecord, facts: Facts, limits: Limits, install: Install) -> list[Step]:
    """Bring one version a step further."""
    if install.state in WITH_WORKER:
        return _serve(record, facts, limits, install)
    kind = JOBS.get(install.state)
    if install.state is _S.VERIFIED:
        return _start_race(record, facts, limits, install)
    if kind is None or facts.jobs.get(install.ref) is not None or due_later(install, facts):
        return []
    if (step := _skip(facts, install)) is not None:
        return [step]
    if (wait := window_wait(record, facts, limits, install)) is not None:
        return _because(install, *wait)
    if (obstacle := _obstacle(facts, limits, install, kind)) is not None:
        told = (install.reason or "").partition(",")[0] == obstacle.partition(",")[0]
        return [] if told else _because(install, obstacle)  # free space changes all the time; that is no news
    fresh = {"reason": None, "full_at_bytes": None, "not_before": None, "opens_at": None}
    changed = (install.reason, install.full_at_bytes) != (None, None)
    return [Revise(install.ref, fresh)] if changed else [Begin(install.ref, kind)]


def _skip(facts: Facts, install: Install) -> Step | None:
    """Return the step that needs no work, because the disk has what it would bring."""
    stored = facts.stored.get(install.ref)
    if install.state is _S.AUTHORIZED and stored is not None and stored.manifest_digest == install.manifest_digest:
        return Advance(install.ref, Event.MANIFEST_STORED)
    if install.state is _S.DOWNLOADING:
        if stored is None:
            return Advance(install.ref, Event.FILES_LOST, {"reason": "its manifest is gone from the disk"})
        if stored.missing == 0:
            return Advance(install.ref, Event.FILES_STORED)
    return None


def _obstacle(facts: Facts, limits: Limits, install: Install, kind: JobKind) -> str | None:
    """Return in words what stands in the way of starting `kind`, or None."""
    same = _RACES if kind in _RACES else (kind,)
    running = next((ref for ref, other in facts.jobs.items() if other in same), None)
    if running is not None:
        return f"waiting: {running} is first ({kind})"
    if kind is JobKind.RACE:
        return None
    if not facts.online and facts.clock_unset:
        return (
            "offline: this board's clock is not set, so no certificate is valid yet: it goes on when the clock is set"
        )
    if not facts.online:
        return "offline: it goes on when the broker can be reached"
    stored = facts.stored.get(install.ref)
    if kind is JobKind.FILES and stored is not None and facts.free_bytes < needed_bytes(stored, limits):
        return (
            f"needs {_megabytes(stored.missing_bytes)} MB and {_megabytes(limits.disk_reserve_bytes)} MB reserve, "
            f"{_megabytes(facts.free_bytes)} MB free: free some space and it goes on"
        )
    return None


def _start_race(record: AgentRecord, facts: Facts, limits: Limits, install: Install) -> list[Step]:
    if due_later(install, facts):
        return []
    if not _complete(facts, install):
        return [Advance(install.ref, Event.FILES_LOST, {"reason": "a file is gone from the disk"})]
    if (wait := window_wait(record, facts, limits, install)) is not None:
        return _because(install, *wait)
    if (alone := boots.starts_alone(record, facts, limits)) is not None:
        return _because(install, alone[1])
    return [Advance(install.ref, Event.RACE_STARTED, {"attempt": install.attempt})]


def _serve(record: AgentRecord, facts: Facts, limits: Limits, install: Install) -> list[Step]:
    """Keep the worker of a placed, tried or committed version going, and judge it."""
    worker = facts.workers.get(install.ref)
    if install.state is not _S.COMMITTED:
        verdict = judge_accuracy(install, record.replaced(install))
        if verdict.passed is False:
            return [Advance(install.ref, Event.TRIAL_FAILED, {"reason": verdict.reason})]
    if facts.jobs.get(install.ref) is JobKind.CHECK:
        return []  # the death that it is about is written into the record when the files have been read
    if install.state is _S.COMMITTED and install.successor is not None and worker is not None:
        steps = succeeded(facts, install, install.successor, worker)
        if steps:
            return steps
    if worker is None or install.placement is None:
        return _start_worker(record, facts, limits, install)
    if worker.stopping or worker.candidate != install.placement or not worker.ready:
        return []
    if install.state is _S.PLACED:
        replaced = record.replaced(install)
        serving = facts.workers.get(replaced.ref) if replaced is not None else None
        verdict = judge_shadow(install, worker, replaced, serving)
        if verdict.passed is None:
            return _because(install, verdict.reason)
        if (wait := window_wait(record, facts, limits, install)) is not None:
            return _because(install, *wait)
        return [Advance(install.ref, Event.WORKER_READY, {"agreement": verdict.reason or None})]
    if install.state is _S.ON_TRIAL:
        verdict = judge_trial(install, worker, record.replaced(install))
        if verdict.passed is None:
            return _because(install, verdict.reason)
        if verdict.passed:
            return [Advance(install.ref, Event.TRIAL_PASSED, {"committed_at": facts.now_s, "deaths": 0})]
        return [Advance(install.ref, Event.TRIAL_FAILED, {"reason": verdict.reason})]
    steps = boots.proved(install, worker, facts, limits) or boots.tried_again(record, install, facts, limits)
    if steps or boots.starts_alone(record, facts, limits) is not None:
        return steps
    return _race_again(record, facts, limits, install)


def _race_again(record: AgentRecord, facts: Facts, limits: Limits, install: Install) -> list[Step]:
    """Race a committed version anew when that is due, nothing else races and the version stays wanted."""
    unmet = install.race.unmet if install.race is not None else None
    wanted = install.version == record.desired_version(install.name)
    if not wanted or any(kind in _RACES for kind in facts.jobs.values()):
        return _because(install, unmet)
    # A policy that was changed since has cleared the reason of a race that is still to begin (_want).
    begun = (install.rerace or "its policy was changed") if install.racing_again else None
    reason = begun or rerace_reason(install, facts, limits)
    if reason is None:
        return _because(install, unmet)
    if (wait := window_wait(record, facts, limits, install)) is not None:
        return _because(install, f"{wait.reason}, to race anew: {reason}", wait.opens_at)
    if install.racing_again:
        return _because(install, unmet) or [Begin(install.ref, JobKind.RERACE)]
    # The time is on disk before the race begins, so that one which ends the board is not begun at every boot.
    changes = {"rerace": reason, "reraced_at": facts.now_s, "racing_again": True}
    return [Revise(install.ref, {**changes, "reason": unmet, "opens_at": None})]


def _start_worker(record: AgentRecord, facts: Facts, limits: Limits, install: Install) -> list[Step]:
    if install.state is _S.ON_TRIAL:
        return [Advance(install.ref, Event.INTERRUPTED, {"reason": "its worker is gone: the trial starts again"})]
    if due_later(install, facts):
        return []
    if not _complete(facts, install) or install.placement is None:
        return [Advance(install.ref, Event.FILES_LOST, {"reason": "a file is gone from the disk", "race": None})]
    if install.state is _S.PLACED and (wait := window_wait(record, facts, limits, install)) is not None:
        return _because(install, *wait)
    if install.state is _S.PLACED and install.opens_at is not None:
        return _because(install, None)
    if install.state is _S.COMMITTED and (steps := boots.given_up(install, facts, limits)):
        return steps
    alone = boots.starts_alone(record, facts, limits)
    if alone is not None and alone[0] is not install:
        return _because(install, alone[1])
    return boots.marked(install, install.placement, facts) or [start_of(install, install.placement)]


def _because(install: Install, reason: str | None, opens_at: float | None = None) -> list[Step]:
    if (install.reason, install.opens_at) == (reason, opens_at):
        return []
    return [Revise(install.ref, {"reason": reason, "opens_at": opens_at})]


def _complete(facts: Facts, install: Install) -> bool:
    stored = facts.stored.get(install.ref)
    return stored is not None and stored.missing == 0 and stored.manifest_digest == install.manifest_digest


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f}".removesuffix(".0")
