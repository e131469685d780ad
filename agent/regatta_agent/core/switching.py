"""Which jobs to end, where each socket leads, which workers to stop and what to keep, by the record and what there is.

The second half of the plan: these steps are carried out once nothing more is to be recorded (planner.py). Pure.
"""

from __future__ import annotations

from regatta_agent.core.facts import (
    Cancel,
    Collect,
    Facts,
    JobKind,
    Limits,
    Point,
    Step,
    StopWorker,
    StoredVersion,
    Unpoint,
)
from regatta_agent.core.installs import AgentRecord, Install
from regatta_agent.core.states import IN_PROGRESS
from regatta_protocol.ids import ModelRef
from regatta_protocol.messages import InstallState

__all__ = ["JOBS", "WITH_WORKER", "cancelled", "collected", "needed_bytes", "switched"]

_S = InstallState

JOBS = {
    _S.ASSIGNED: JobKind.AUTHORIZE,
    _S.AUTHORIZED: JobKind.MANIFEST,
    _S.DOWNLOADING: JobKind.FILES,
    _S.RACING: JobKind.RACE,
}
WITH_WORKER = (_S.PLACED, _S.ON_TRIAL, _S.COMMITTED)


def cancelled(record: AgentRecord, facts: Facts) -> list[Step]:
    """End jobs that no state asks for any more."""
    steps: list[Step] = []
    for ref, kind in facts.jobs.items():
        install = record.find(ref)
        wanted = install is not None and (
            JOBS.get(install.state) is kind
            or (kind is JobKind.CHECK and install.state in WITH_WORKER)
            or (kind is JobKind.RERACE and install.state is _S.COMMITTED and install.racing_again)
        )
        if not wanted:
            steps.append(Cancel(ref))
    return steps


def switched(record: AgentRecord, facts: Facts) -> list[Step]:
    """Lead each model's socket to the worker that shall serve; only then stop the others."""
    steps: list[Step] = []
    for name in sorted({*record.installs, *facts.links}):
        serving = record.serving(name)
        if serving is None:
            if name in facts.links:
                steps.append(Unpoint(name))
            continue
        both = (facts.successors.get(serving.ref), facts.workers.get(serving.ref))
        fit = [one for one in both if one is not None and one.ready and not one.stopping]
        # While a worker of another placement than the one wanted is all there is, it goes on serving.
        worker = next((one for one in fit if one.candidate == serving.placement), fit[-1] if fit else None)
        if worker is not None and facts.links.get(name) != worker.socket:
            steps.append(Point(serving.ref, worker.socket))
    steps += _cast_shadows(record, facts)
    for ref, worker in (*facts.workers.items(), *facts.successors.items()):
        install = record.find(ref)
        wanted = install is not None and install.state in WITH_WORKER and worker.candidate in _candidates(install)
        if not wanted and not worker.stopping:
            steps.append(StopWorker(ref, worker.socket))
    return steps


def _cast_shadows(record: AgentRecord, facts: Facts) -> list[Step]:
    """Show a sample of each model's requests to the next version, once its worker is ready and while it is placed."""
    steps: list[Step] = []
    for name in sorted({*record.installs, *facts.shadows}):
        placed = record.in_state(name, _S.PLACED)
        worker = facts.workers.get(placed.ref) if placed is not None else None
        fit = worker is not None and worker.ready and not worker.stopping
        if placed is not None and worker is not None and fit and worker.candidate == placed.placement:
            if facts.shadows.get(name) != worker.socket:
                steps.append(Point(placed.ref, worker.socket, shadow=True))
        elif name in facts.shadows:
            steps.append(Unpoint(name, shadow=True))
    return steps


def _candidates(install: Install) -> tuple[str | None, ...]:
    return (install.placement, install.successor.placement if install.successor is not None else None)


def needed_bytes(stored: StoredVersion, limits: Limits) -> int:
    """Return how much must be free for the rest of a version to be downloaded."""
    return stored.missing_bytes + limits.disk_reserve_bytes


def collected(record: AgentRecord, facts: Facts, limits: Limits) -> list[Step]:
    """Keep what is in progress, what serves or is pinned, and the last versions that served before; delete the rest.

    Of the rest the newest stay while all together fit into the budget, and no download waits for their space.
    """
    if record.assignment is None:
        return []  # a lost record is rebuilt from the fleet, and what lies on disk need not be fetched again
    keep = {install.ref for install in record.all() if install.state in IN_PROGRESS or install.state is _S.COMMITTED}
    for name, installs in record.installs.items():
        if record.desired_version(name) is not None:
            retired = [one for one in installs if one.state is _S.RETIRED and one.committed_at is not None]
            retired.sort(key=lambda one: one.committed_at or 0.0)
            keep |= {one.ref for one in retired[-limits.keep_previous :]} if limits.keep_previous else set()
    keep |= {install.ref for install in record.all() if install.state is _S.FAILED and _is_tried_again(record, install)}
    keep |= {install.ref for install in record.all() if install.ref in limits.pinned and _whole(facts, install)}
    keep |= _within_budget(record, facts, limits, frozenset(keep))
    return [Collect(frozenset(keep))] if frozenset(keep) != facts.collected else []


def _is_tried_again(record: AgentRecord, install: Install) -> bool:
    return bool(install.given_up) and install.version == record.desired_version(install.name)


def _within_budget(record: AgentRecord, facts: Facts, limits: Limits, kept: frozenset[ModelRef]) -> set[ModelRef]:
    """Return the versions that stay although nothing needs them, newest first."""
    arriving = [facts.stored.get(install.ref) for install in record.all() if install.state is _S.DOWNLOADING]
    in_want = any(stored is not None and facts.free_bytes < needed_bytes(stored, limits) for stored in arriving)
    if limits.disk_budget_bytes == 0 or in_want:
        return set()
    left_bytes = limits.disk_budget_bytes - sum(facts.stored[ref].size_bytes for ref in kept if ref in facts.stored)
    retired = [one for one in record.all() if one.state is _S.RETIRED and one.committed_at is not None]
    found: set[ModelRef] = set()
    for install in sorted(retired, key=lambda one: one.committed_at or 0.0, reverse=True):
        if install.ref in kept or not _whole(facts, install):
            continue
        left_bytes -= facts.stored[install.ref].size_bytes
        if left_bytes < 0:
            break
        found.add(install.ref)
    return found


def _whole(facts: Facts, install: Install) -> bool:
    stored = facts.stored.get(install.ref)
    return stored is not None and stored.missing == 0
