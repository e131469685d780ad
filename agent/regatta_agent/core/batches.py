"""The life of the fleet's batch jobs on this device: one table, what to do next, and what came of it. Pure.

Invariants (tests/unit/agent/test_batches.py):

- one job runs at a time, the oldest that can; every job that does not run says why;
- a job that no assignment asks for any more does not run; one that has ended does not run again;
- no job runs beside a race, which would measure it too, nor without leave of the device's operator;
- starts in a row that do not bring a single record further are bounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from random import Random
from types import MappingProxyType
from typing import Any

from pydantic import Field, field_validator

from regatta_agent.core.facts import SPACE_CAME_BYTES, Limits
from regatta_protocol.batch import BatchJob, BatchReport, BatchState, BatchSummary
from regatta_protocol.enums import StrEnum
from regatta_protocol.errors import Misuse
from regatta_protocol.wire import Wire

__all__ = [
    "ENDED",
    "TRANSITIONS",
    "BatchEvent",
    "BatchFacts",
    "BatchOutcome",
    "BatchRun",
    "Broken",
    "Finished",
    "Progressed",
    "concluded",
    "next_state",
    "planned",
    "recovered",
    "refusal",
    "reports",
    "running",
    "taken_up",
]

_MAX_REASON = 400
_LONGEST_WAIT_S = 2 * 3600.0  # one that ends later is of a clock that jumped, and counts no more


class BatchEvent(StrEnum):
    """What can happen to a job."""

    STARTED = "started"
    INTERRUPTED = "interrupted"  # its process or the agent ended, or a race goes first: it goes on later
    FINISHED = "finished"
    GAVE_UP = "gave_up"  # refused for good, or out of attempts
    WITHDRAWN = "withdrawn"  # no assignment asks for it any more


_S = BatchState
_E = BatchEvent

ENDED = frozenset({_S.DONE, _S.FAILED, _S.CANCELLED})

TRANSITIONS = MappingProxyType(
    {
        (_S.QUEUED, _E.STARTED): _S.RUNNING,
        (_S.QUEUED, _E.GAVE_UP): _S.FAILED,
        (_S.QUEUED, _E.WITHDRAWN): _S.CANCELLED,
        (_S.RUNNING, _E.INTERRUPTED): _S.QUEUED,
        (_S.RUNNING, _E.FINISHED): _S.DONE,
        (_S.RUNNING, _E.GAVE_UP): _S.FAILED,
        (_S.RUNNING, _E.WITHDRAWN): _S.CANCELLED,
    }
)


class BatchRun(Wire):
    """A job and where it stands."""

    job: BatchJob
    state: BatchState = BatchState.QUEUED
    attempt: int = Field(default=0, ge=0)  # starts in a row that brought no record
    not_before: float | None = None  # seconds since 1970
    full_at_bytes: int | None = None  # how much was free when the disk of its results was found full
    reason: str | None = None
    records: int = Field(default=0, ge=0)
    total: int | None = None
    summary: BatchSummary | None = None

    @field_validator("state")
    @classmethod
    def _known(cls, state: BatchState) -> BatchState:
        if not state.known:  # there would be no way out of it: it is better to begin anew
            raise ValueError(f"the state {state} is one of a newer agent")
        return state

    def after(self, event: BatchEvent, **changes: Any) -> BatchRun:  # noqa: ANN401 - fields of BatchRun
        """Return the run after the event; the reason and the waits are cleared unless `changes` give them.

        Raises:
            Misuse: when the table has no such step.
        """
        state = next_state(self.state, event)
        return self.model_copy(
            update={"state": state, "reason": None, "not_before": None, "full_at_bytes": None, **changes}
        )


@dataclass(frozen=True)
class BatchFacts:
    """The world at one moment, as far as jobs depend on it."""

    now_s: float  # seconds since 1970
    serving: frozenset[str]  # models whose socket leads to a worker
    racing: str | None  # a version that is being raced
    folder: PurePosixPath | None  # below which results go; None: the operator allows no jobs
    inputs: tuple[PurePosixPath, ...]  # folders that jobs may read
    free_bytes: int | None = None  # on the disk of the results; None: no job waits for space, or it cannot be told
    reserve_bytes: int = 0  # of that, left free


@dataclass(frozen=True)
class Progressed:
    records: int
    total: int | None


@dataclass(frozen=True)
class Finished:
    summary: BatchSummary


@dataclass(frozen=True)
class Broken:
    """Its process ended without a result.

    `final`: no other start would fare better; `full`: the disk of its results was, which is no fault of the job, with
    `free_bytes` on it.
    """

    reason: str
    final: bool = False
    full: bool = False
    free_bytes: int | None = None


BatchOutcome = Progressed | Finished | Broken
Runs = tuple[BatchRun, ...]


def next_state(state: BatchState, event: BatchEvent) -> BatchState:
    """Return the state after `event`.

    Raises:
        Misuse: when the table has no such pair.
    """
    try:
        return TRANSITIONS[(state, event)]
    except KeyError:
        raise Misuse(f"a batch job that is {state} cannot take the event {event}") from None


def running(runs: Runs) -> BatchRun | None:
    """Return the one that runs."""
    return next((run for run in runs if run.state is _S.RUNNING), None)


def taken_up(runs: Runs, jobs: Sequence[BatchJob]) -> Runs:
    """Return the runs under a newer assignment.

    New jobs are queued. What is no longer asked for is cancelled and told of once more, or, when it has ended,
    forgotten: the fleet has heard of it.
    """
    known = {run.job.id: run for run in runs}
    asked = {job.id for job in jobs}
    wanted = tuple(known.get(job.id) or BatchRun(job=job) for job in jobs)
    dropped = (run for run in runs if run.job.id not in asked and run.state not in ENDED)
    return (*wanted, *(run.after(_E.WITHDRAWN, reason="the fleet no longer asks for it") for run in dropped))


def planned(runs: Runs, facts: BatchFacts) -> Runs:
    """Return the runs as they shall be now: refused, paused for a race, started, or waiting with their reason."""
    runs = tuple(_allowed(run, facts) for run in runs)
    found: list[BatchRun] = []
    first = running(runs)
    for run in runs:
        if run.state is _S.RUNNING and facts.racing is not None:
            paused = f"waiting: {facts.racing} is being raced"
            run = run.after(_E.INTERRUPTED, reason=paused, attempt=max(0, run.attempt - 1))
        elif run.state is _S.QUEUED:
            why = _obstacle(run, facts, first)
            run = _waiting(run, why) if why is not None else run.after(_E.STARTED, attempt=run.attempt + 1)
            first = run if run.state is _S.RUNNING else first
        found.append(run)
    return tuple(found)


def concluded(runs: Runs, identifier: str, outcome: BatchOutcome, now_s: float, rng: Random, limits: Limits) -> Runs:
    """Return the runs after news of the one that runs; of any other they change nothing."""
    return tuple(
        _concluded(run, outcome, now_s, rng, limits) if run.job.id == identifier and run.state is _S.RUNNING else run
        for run in runs
    )


def recovered(runs: Runs, limits: Limits) -> Runs:
    """Return the runs as they stand after a start of the agent: what was running goes on."""
    return tuple(_interrupted(run, limits) if run.state is _S.RUNNING else run for run in runs)


def reports(runs: Runs) -> tuple[BatchReport, ...]:
    """Return what the fleet is told."""
    return tuple(
        BatchReport(
            id=run.job.id,
            state=run.state,
            reason=run.reason[:_MAX_REASON] if run.reason is not None else None,
            attempt=run.attempt,
            records=run.records,
            total=run.total,
            summary=run.summary,
        )
        for run in runs
    )


def refusal(job: BatchJob, folder: PurePosixPath | None, inputs: Sequence[PurePosixPath]) -> str | None:
    """Return why the device's operator does not allow the job, by the words of its paths, or None.

    What links on the disk make of the paths is for the job's process to look at (batch/fleet_job.py).
    """
    if folder is None or not inputs:
        missing = "batch_folder" if folder is None else "batch_inputs"
        return (
            f"this device lets its fleet run no batch jobs: {missing} is not set. Its operator allows them by "
            "batch_folder (where results go) and batch_inputs (the folders that may be read) in agent.toml"
        )
    output, source = folder / job.output, PurePosixPath(job.input)
    if ".." in output.parts or output == folder or not output.is_relative_to(folder):
        return f"output {job.output} is not below {folder}, the batch_folder of this device's agent.toml"
    if ".." in source.parts or not any(source.is_relative_to(one) for one in inputs):
        allowed = ", ".join(map(str, inputs))
        return (
            f"input {job.input} is not below {allowed}: batch_inputs in this device's agent.toml names what may be read"
        )
    return None


def _allowed(run: BatchRun, facts: BatchFacts) -> BatchRun:
    why = refusal(run.job, facts.folder, facts.inputs) if run.state not in ENDED else None
    return run if why is None else run.after(_E.GAVE_UP, reason=why)


def _obstacle(run: BatchRun, facts: BatchFacts, first: BatchRun | None) -> str | None:
    put_off = run.not_before is not None and facts.now_s < run.not_before < facts.now_s + _LONGEST_WAIT_S
    if put_off and not _space_came(run, facts):
        return run.reason
    if run.job.model not in facts.serving:
        return f"waiting: no version of {run.job.model} serves on this device"
    if facts.racing is not None:
        return f"waiting: {facts.racing} is being raced"
    return None if first is None else f"waiting: {first.job.id} is first"


def _space_came(run: BatchRun, facts: BatchFacts) -> bool:
    if run.full_at_bytes is None or facts.free_bytes is None:
        return False
    return facts.free_bytes >= max(run.full_at_bytes + SPACE_CAME_BYTES, facts.reserve_bytes)


def _waiting(run: BatchRun, why: str) -> BatchRun:
    return run if run.reason == why else run.model_copy(update={"reason": why})


def _concluded(run: BatchRun, outcome: BatchOutcome, now_s: float, rng: Random, limits: Limits) -> BatchRun:
    if isinstance(outcome, Progressed):
        attempt = 1 if outcome.records > run.records else run.attempt
        return run.model_copy(update={"records": outcome.records, "total": outcome.total, "attempt": attempt})
    if isinstance(outcome, Finished):
        done = outcome.summary.records
        return run.after(_E.FINISHED, records=done, total=done, summary=outcome.summary)
    if outcome.final:
        return run.after(_E.GAVE_UP, reason=outcome.reason)
    if outcome.full:
        wait_s = limits.full_disk_wait_s(rng)
        return run.after(
            _E.INTERRUPTED,
            reason=f"{outcome.reason}; next in {wait_s / 60:.0f} min, or when there is space",
            not_before=now_s + wait_s,
            full_at_bytes=outcome.free_bytes,
            attempt=max(0, run.attempt - 1),
        )
    if run.attempt >= limits.max_attempts:
        return run.after(_E.GAVE_UP, reason=f"{outcome.reason}; given up after {run.attempt} attempts")
    wait_s = limits.retry_wait_s(run.attempt, rng)
    reason = f"attempt {run.attempt} of {limits.max_attempts}: {outcome.reason}; next in {wait_s:.0f} s"
    return run.after(_E.INTERRUPTED, reason=reason, not_before=now_s + wait_s)


def _interrupted(run: BatchRun, limits: Limits) -> BatchRun:
    if run.attempt >= limits.max_attempts:
        return run.after(_E.GAVE_UP, reason=f"the agent ended {run.attempt} times while it ran, with no record done")
    return run.after(_E.INTERRUPTED, reason="waiting: the agent was started again")
