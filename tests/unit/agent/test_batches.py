"""The fleet's batch jobs in the agent's core: the table, who runs, what waits for what, and what is bounded."""

from __future__ import annotations

from itertools import product
from pathlib import PurePosixPath
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regatta_agent.core.batches import (
    ENDED,
    TRANSITIONS,
    BatchEvent,
    BatchFacts,
    BatchOutcome,
    BatchRun,
    Broken,
    Finished,
    Progressed,
    concluded,
    next_state,
    planned,
    recovered,
    refusal,
    running,
    taken_up,
)
from regatta_agent.core.facts import Limits
from regatta_protocol.batch import BatchJob, BatchState, BatchSummary
from regatta_protocol.errors import Misuse
from regatta_protocol.ids import ModelName

_LIMITS = Limits(max_attempts=3)
_FOLDER, _INPUTS = PurePosixPath("/data/out"), (PurePosixPath("/data/in"),)
_RESERVE_BYTES = 16_000_000
_SUMMARY = BatchSummary(records=5, refused=1, seconds=1.0, per_second=5.0)
_S = BatchState


def job(number: int = 1, /, **fields: object) -> BatchJob:
    given = {"id": f"b-{number}", "model": ModelName("digits"), "input": "/data/in/x.npy", "output": f"{number}.jsonl"}
    return BatchJob.model_validate({**given, **fields})


def facts(
    now_s: float = 0.0,
    racing: str | None = None,
    serving: tuple[str, ...] = ("digits",),
    free_bytes: int | None = None,
) -> BatchFacts:
    return BatchFacts(now_s, frozenset(serving), racing, _FOLDER, _INPUTS, free_bytes, _RESERVE_BYTES)


def states(runs: tuple[BatchRun, ...]) -> list[str]:
    return [str(run.state) for run in runs]


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_whatever_happens_one_runs_at_most_and_every_wait_has_its_reason(data: st.DataObject) -> None:
    """Assignments, races, breaks, ends and restarts in any order; what has ended stays as it ended."""
    runs: tuple[BatchRun, ...] = ()
    ended: dict[str, BatchState] = {}
    for step in range(data.draw(st.integers(1, 25))):
        choice = data.draw(st.sampled_from(["assign", "break", "progress", "finish", "restart", "wait"]))
        if choice == "assign":
            runs = taken_up(runs, [job(number) for number in sorted(data.draw(st.sets(st.integers(1, 4))))])
        elif choice == "restart":
            runs = recovered(runs, _LIMITS)
        elif (active := running(runs)) is not None and choice != "wait":
            outcome: dict[str, BatchOutcome] = {
                "break": Broken("broke", final=False),
                "progress": Progressed(step, None),
            }
            news = outcome.get(choice, Finished(_SUMMARY))
            runs = concluded(runs, active.job.id, news, float(step), Random(step), _LIMITS)
        racing = data.draw(st.sampled_from([None, "digits:2"]))
        now = facts(step * data.draw(st.sampled_from([1.0, 1e3])), racing)
        runs = planned(runs, now)

        assert planned(runs, now) == runs
        assert sum(run.state is _S.RUNNING for run in runs) <= (0 if racing else 1)
        assert all(run.reason for run in runs if run.state is _S.QUEUED)
        assert all(run.attempt <= _LIMITS.max_attempts for run in runs)
        for run in runs:
            if run.job.id in ended:
                assert run.state is ended[run.job.id]
        ended = {run.job.id: run.state for run in runs if run.state in ENDED}


@pytest.mark.parametrize(("state", "event"), list(product(BatchState, BatchEvent)))
def test_every_pair_is_in_the_table_or_raises(state: BatchState, event: BatchEvent) -> None:
    """An unknown pair raises and names both; an ended job has no way on, and any other can fail or be withdrawn."""
    if (state, event) in TRANSITIONS:
        assert next_state(state, event) is TRANSITIONS[(state, event)]
        assert state not in ENDED
    else:
        with pytest.raises(Misuse, match=f"{state}.*{event}"):
            next_state(state, event)
        assert state in ENDED or event not in (BatchEvent.GAVE_UP, BatchEvent.WITHDRAWN)


def test_one_runs_at_a_time_and_every_other_says_what_it_waits_for() -> None:
    """The oldest whose model serves; a plan of unchanged facts changes nothing."""
    runs = taken_up((), (job(1, model="away"), job(2), job(3)))

    after = planned(runs, facts())

    assert states(after) == ["queued", "running", "queued"]
    assert [run.reason for run in after] == [
        "waiting: no version of away serves on this device",
        None,
        "waiting: b-2 is first",
    ]
    assert planned(after, facts()) == after


def test_a_race_goes_first_and_costs_no_attempt() -> None:
    """The job that runs is paused, none is started meanwhile, and it goes on afterwards."""
    runs = planned(taken_up((), (job(1), job(2))), facts())

    paused = planned(runs, facts(racing="digits:2"))

    assert states(paused) == ["queued", "queued"]
    assert paused[0].reason == "waiting: digits:2 is being raced"
    again = planned(paused, facts())
    assert (states(again), again[0].attempt) == (["running", "queued"], 1)


def test_withdrawn_jobs_are_cancelled_and_ended_ones_forgotten() -> None:
    """A cancelled job is told of until the next assignment; one that has ended is not done again while it is asked."""
    runs = planned(taken_up((), (job(1), job(2))), facts())
    runs = concluded(runs, "b-1", Finished(_SUMMARY), 0.0, Random(1), _LIMITS)
    runs = planned(runs, facts())

    assert states(taken_up(runs, (job(1), job(2)))) == ["done", "running"]
    cancelled = taken_up(runs, ())
    assert [(run.job.id, str(run.state)) for run in cancelled] == [("b-2", "cancelled")]
    assert planned(cancelled, facts()) == cancelled
    assert taken_up(cancelled, ()) == ()


def test_starts_without_a_record_more_are_bounded_and_progress_begins_the_count_anew() -> None:
    """With back-off in between; restarts of the agent count too, so a job that ends the board is not done for ever."""
    broken, now_s = Broken("the model is away", final=False), 0.0
    runs = planned(taken_up((), (job(),)), facts())
    runs = concluded(runs, "b-1", broken, now_s, Random(1), _LIMITS)
    assert runs[0].state is _S.QUEUED and runs[0].not_before is not None and "attempt 1 of 3" in (runs[0].reason or "")
    assert planned(runs, facts(now_s)) == runs

    runs = recovered(planned(runs, facts(1e6)), _LIMITS)
    runs = planned(runs, facts(1e6))
    assert (runs[0].state, runs[0].attempt) == (_S.RUNNING, 3)
    moved = concluded(runs, "b-1", Progressed(7, None), now_s, Random(1), _LIMITS)
    assert concluded(moved, "b-1", broken, now_s, Random(1), _LIMITS)[0].state is _S.QUEUED
    for ended in (concluded(runs, "b-1", broken, now_s, Random(1), _LIMITS), recovered(runs, _LIMITS)):
        assert ended[0].state is _S.FAILED and " 3 " in (ended[0].reason or "")


def test_what_no_other_start_would_mend_fails_at_once() -> None:
    """With the reason of its process."""
    runs = planned(taken_up((), (job(),)), facts())

    (run,) = concluded(runs, "b-1", Broken("x.npy is no array", final=True), 0.0, Random(1), _LIMITS)

    assert (run.state, run.reason) == (_S.FAILED, "x.npy is no array")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"input": "/etc/shadow"}, "batch_inputs"),
        ({"input": "/data/in/../secret"}, "batch_inputs"),
        ({"input": "in/x.npy"}, "batch_inputs"),
        ({"input": "/data/inner/x.npy"}, "batch_inputs"),
        ({"input": "-"}, "batch_inputs"),
        ({"output": "/etc/x.csv"}, "batch_folder"),
        ({"output": "../x.csv"}, "batch_folder"),
        ({"output": "."}, "batch_folder"),
        ({}, None),
        ({"output": "/data/out/day/x.csv", "input": "/data/in/**/*.jpg"}, None),
    ],
)
def test_only_the_operators_folders_are_read_and_written(fields: dict[str, object], words: str | None) -> None:
    """A refusal names the key of agent.toml; the plan fails such a job."""
    why = refusal(job(**fields), _FOLDER, _INPUTS)

    assert why is None if words is None else words in (why or "")
    (run,) = planned(taken_up((), (job(**fields),)), facts())
    assert run.state is (_S.RUNNING if words is None else _S.FAILED)


@pytest.mark.parametrize(("folder", "inputs", "key"), [(None, _INPUTS, "batch_folder"), (_FOLDER, (), "batch_inputs")])
def test_without_leave_nothing_runs(folder: PurePosixPath | None, inputs: tuple[PurePosixPath, ...], key: str) -> None:
    """Off by default; the reason says which key the device's operator has to set."""
    assert f"{key} is not set" in (refusal(job(), folder, inputs) or "")


def test_a_full_disk_costs_no_attempt_and_an_hour() -> None:
    """However often: it goes on when its operator has made room."""
    runs, now_s = taken_up((), (job(),)), 0.0
    for _ in range(2 * _LIMITS.max_attempts):
        runs = planned(runs, facts(now_s))
        assert runs[0].state is _S.RUNNING
        runs = concluded(runs, "b-1", Broken("3 bytes are free", full=True), now_s, Random(1), _LIMITS)
        assert planned(runs, facts(now_s + _LIMITS.space_wait_s - 1.0))[0].state is _S.QUEUED
        assert "3 bytes are free; next in 6" in (runs[0].reason or "")
        now_s += 1.1 * _LIMITS.space_wait_s


def test_a_job_that_found_the_disk_full_goes_on_as_soon_as_there_is_space() -> None:
    """With 1 MB more than then, and the reserve; what was left meanwhile by less, or is not known, is no space."""
    (run,) = concluded(
        planned(taken_up((), (job(),)), facts()), "b-1", Broken("full", full=True, free_bytes=15_500_000),
        0.0, Random(1), _LIMITS,
    )  # fmt: skip

    for free_bytes in (None, 0, 15_500_000, 16_499_999):
        assert planned((run,), facts(1.0, free_bytes=free_bytes))[0].state is _S.QUEUED
    assert planned((run,), facts(1.0, free_bytes=16_500_000))[0].state is _S.RUNNING
    below_reserve = run.model_copy(update={"full_at_bytes": 100})
    assert planned((below_reserve,), facts(1.0, free_bytes=15_999_999))[0].state is _S.QUEUED
    (again,) = planned((run,), facts(1.0, free_bytes=16_500_000))
    (broken,) = concluded((again,), "b-1", Broken("the model is away"), 1.0, Random(1), _LIMITS)
    assert broken.full_at_bytes is None, "a fault that has nothing to do with space waits its time"


def test_a_clock_that_is_put_back_by_years_does_not_put_a_job_off_for_years() -> None:
    """A wait that lies absurdly far off is one of the clock as it was."""
    runs = planned(taken_up((), (job(),)), facts(3.2e8))
    runs = concluded(runs, "b-1", Broken("the model is away"), 3.2e8, Random(1), _LIMITS)

    assert planned(runs, facts(3.2e8))[0].state is _S.QUEUED
    assert planned(runs, facts(0.0))[0].state is _S.RUNNING
