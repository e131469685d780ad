"""The planner: each step follows from the one before, nothing is downgraded unasked, and it tells why it waits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from planning import CANDIDATE, IDLE, LIMITS, NAME, an_install, on_disk, settled, wanting
from regatta_agent.core import outcomes
from regatta_agent.core.facts import (
    Begin,
    Cancel,
    Collect,
    JobKind,
    Limits,
    Point,
    StopWorker,
    WorkerFacts,
)
from regatta_agent.core.installs import AgentRecord, Install
from regatta_agent.core.planner import plan, wake_at
from regatta_agent.core.states import IN_PROGRESS
from regatta_protocol.ids import ModelRef
from regatta_protocol.messages import InstallState


def test_a_new_version_is_assigned_and_its_metadata_asked_for() -> None:
    """The first step of an install is to ask what is signed."""
    record, steps = settled(wanting(AgentRecord(), 1), IDLE)

    assert record.all().__next__().state is InstallState.ASSIGNED
    assert Begin(ModelRef(NAME, 1), JobKind.AUTHORIZE) in steps


def test_offline_nothing_is_asked_and_the_reason_says_so() -> None:
    """A wait has a reason."""
    record, steps = settled(wanting(AgentRecord(), 1), replace(IDLE, online=False))

    assert "offline" in (record.all().__next__().reason or "")
    assert not [step for step in steps if isinstance(step, Begin)]


def test_a_download_that_does_not_fit_waits_with_both_figures_and_does_not_repeat_itself() -> None:
    """Free space that changes is no news, so that a full disk is not written to again and again."""
    record = wanting(AgentRecord().with_install(an_install(1, InstallState.DOWNLOADING)), 1)
    facts = replace(IDLE, stored=on_disk(1, missing_bytes=14_000_000), free_bytes=3_000_000)
    record, steps = settled(record, facts)

    assert "needs 14 MB" in (record.all().__next__().reason or "")
    assert "3 MB free" in (record.all().__next__().reason or "")
    again, _ = settled(record, replace(facts, free_bytes=2_500_000))
    assert again == record
    assert not [step for step in steps if isinstance(step, Begin)]


@pytest.mark.parametrize("state", sorted(IN_PROGRESS))
@pytest.mark.parametrize("busy", [True, False], ids=["at work", "in a wait"])
def test_a_newer_generation_supersedes_whatever_goes_on(state: InstallState, busy: bool) -> None:
    """In every state, with its job or worker or in its back-off: withdrawn at once, ended, and the new one begins."""
    kinds = {
        InstallState.ASSIGNED: JobKind.AUTHORIZE,
        InstallState.AUTHORIZED: JobKind.MANIFEST,
        InstallState.DOWNLOADING: JobKind.FILES,
        InstallState.RACING: JobKind.RACE,
    }
    ref = ModelRef(NAME, 2)
    served = WorkerFacts(CANDIDATE, True, 9.0, "s1")
    workers = {ModelRef(NAME, 1): served}
    if busy and state in (InstallState.PLACED, InstallState.ON_TRIAL):
        workers[ref] = WorkerFacts(CANDIDATE, state is InstallState.ON_TRIAL, 0.0, "s2")
    waits: dict[str, Any] = (
        {} if busy else {"not_before": IDLE.now_s + 300.0, "reason": "later", "full_at_bytes": IDLE.free_bytes}
    )
    record = AgentRecord().with_install(an_install(1, InstallState.COMMITTED, committed_at=1.0))
    record = wanting(record.with_install(an_install(2, state, race=None, **waits)), 2)
    facts = replace(
        IDLE, stored=on_disk(1, 2), workers=workers, links={NAME: "s2" if len(workers) == 2 else "s1"},
        jobs={ref: kinds[state]} if busy and state in kinds else {},
    )  # fmt: skip

    record, steps = settled(wanting(record, 3, "r3"), facts)

    superseded = record.find(ref)
    assert superseded is not None
    assert (superseded.state, superseded.reason) == (InstallState.RETIRED, "generation 2 wants digits:3")
    assert [step.ref for step in steps if isinstance(step, Cancel)] == list(facts.jobs)
    assert (StopWorker(ref, "s2") in steps) is (ref in workers)
    assert (Point(ModelRef(NAME, 1), "s1") in steps) is (ref in workers)
    begun = [step.ref.version for step in steps if isinstance(step, Begin)]
    fresh = record.find(ModelRef(NAME, 3))
    assert fresh is not None
    assert begun == [3] or fresh.reason == "waiting: digits:2 is first (authorize)"


def test_a_clock_that_jumped_back_does_not_hold_a_retry_for_years() -> None:
    """A back-off that lies absurdly far off is over."""
    record = wanting(AgentRecord().with_install(an_install(1, InstallState.ASSIGNED, not_before=9e9)), 1)

    _, steps = settled(record, IDLE)

    assert Begin(ModelRef(NAME, 1), JobKind.AUTHORIZE) in steps


def test_the_link_moves_before_the_old_worker_is_stopped() -> None:
    """The order of the swap leaves no gap."""
    record = AgentRecord().with_install(an_install(1, InstallState.COMMITTED))
    record = wanting(record.with_install(an_install(2, InstallState.COMMITTED)), 2)
    worker = WorkerFacts(CANDIDATE, ready=True, ready_for_s=9.0, socket="two")
    facts = replace(
        IDLE,
        stored=on_disk(1, 2),
        workers={ModelRef(NAME, 1): replace(worker, socket="one"), ModelRef(NAME, 2): worker},
        links={NAME: "one"},
    )
    record, steps = settled(record, facts)

    kinds = [type(step) for step in steps]
    assert kinds.index(Point) < kinds.index(StopWorker)
    assert StopWorker(ModelRef(NAME, 1), "one") in steps


def test_a_lost_file_of_the_committed_version_is_fetched_again() -> None:
    """A hole in the disk heals itself."""
    record = wanting(AgentRecord().with_install(an_install(1, InstallState.COMMITTED)), 1)

    record, steps = settled(record, replace(IDLE, stored=on_disk(1, missing_bytes=5)))

    assert Begin(ModelRef(NAME, 1), JobKind.AUTHORIZE) in steps


def test_wake_at_gives_the_end_of_the_next_wait() -> None:
    """The loop sleeps no longer than to the next thing due."""
    record = wanting(AgentRecord().with_install(an_install(1, InstallState.ASSIGNED, not_before=1030.0)), 1)

    assert wake_at(record, IDLE) == 1030.0
    assert wake_at(AgentRecord(), IDLE) is None


def test_nothing_is_collected_before_the_fleet_was_heard() -> None:
    """After a lost record, files on disk are not thrown away."""
    assert not [step for step in plan(AgentRecord(), IDLE, LIMITS) if isinstance(step, Collect)]


@pytest.mark.parametrize("state", [InstallState.RACING, InstallState.PLACED, InstallState.ON_TRIAL])
def test_a_version_that_ends_the_board_is_given_up(state: InstallState) -> None:
    """Whenever it is raced, its worker started or tried: there is no loop of reboots, and version 1 serves on."""
    record = AgentRecord().with_install(an_install(1, InstallState.COMMITTED)).with_install(an_install(2, state))
    record, boots = wanting(record, 2), 0

    def second() -> Install:
        found = record.find(ModelRef(NAME, 2))
        assert found is not None
        return found

    while second().state in IN_PROGRESS:
        assert boots < LIMITS.max_attempts
        record, boots = outcomes.recovered(record, LIMITS), boots + 1
        if second().state is not InstallState.PLACED:
            record, _ = settled(record, replace(IDLE, stored=on_disk(1, 2)))

    assert boots == LIMITS.max_attempts
    assert "the agent ended 8 times" in (second().reason or "")
    serving = record.serving(NAME)
    assert serving is not None and serving.version == 1


@pytest.mark.parametrize(
    "waits",
    [
        {"reason": "waits: window opens 02:00 UTC", "opens_at": 9000.0},
        {"reason": "waits: this board's clock is not set, so …"},
        {"reason": "its worker cannot be started: no space left", "not_before": 9000.0, "full_at_bytes": 100},
    ],
)
def test_a_start_costs_nothing_where_a_placed_version_only_waits(waits: dict[str, Any]) -> None:
    """A board that is switched off each night may wait for weeks."""
    record = AgentRecord().with_install(an_install(2, InstallState.PLACED, **waits))
    for _ in range(100):
        record = outcomes.recovered(record, LIMITS)

    assert record.find(ModelRef(NAME, 2)) == an_install(2, InstallState.PLACED, **waits)


def _kept(limits: Limits, free_bytes: int = 10**9, state: InstallState = InstallState.COMMITTED) -> list[int]:
    """Return what is kept of six versions of 100 bytes each, of which the last one serves or is on its way."""
    record = AgentRecord()
    for version in range(1, 6):
        record = record.with_install(an_install(version, InstallState.RETIRED, committed_at=float(version)))
    record = wanting(record.with_install(an_install(6, state)), 6)
    stored = {ref: replace(kept, size_bytes=100) for ref, kept in on_disk(1, 2, 3, 4, 5, 6).items()}
    if state is InstallState.DOWNLOADING:
        stored[ModelRef(NAME, 6)] = replace(stored[ModelRef(NAME, 6)], missing=1, missing_bytes=90)
    _, steps = settled(record, replace(IDLE, stored=stored, free_bytes=free_bytes), limits)
    (collect,) = [step for step in steps if isinstance(step, Collect)]
    return sorted(ref.version for ref in collect.keep)


def test_pinned_and_previous_versions_stay_and_others_as_far_as_the_budget_goes() -> None:
    """The newest of them first; a pinned version counts, and stays although the budget is spent."""
    pinned = replace(LIMITS, pinned=frozenset({ModelRef(NAME, 1), ModelRef(NAME, 9)}))

    assert _kept(LIMITS) == [5, 6]
    assert _kept(pinned) == [1, 5, 6]
    assert _kept(replace(LIMITS, disk_budget_bytes=399)) == [4, 5, 6]
    assert _kept(replace(pinned, disk_budget_bytes=400)) == [1, 4, 5, 6]
    assert _kept(replace(pinned, keep_previous=0, disk_budget_bytes=200)) == [1, 6]
    assert _kept(replace(LIMITS, disk_budget_bytes=10**6)) == [1, 2, 3, 4, 5, 6]


def test_versions_that_nothing_needs_make_way_for_a_download() -> None:
    """They go before a download waits for space; what is pinned, or served before, does not."""
    limits = replace(LIMITS, disk_budget_bytes=10**6, disk_reserve_bytes=10, pinned=frozenset({ModelRef(NAME, 2)}))

    assert _kept(limits, free_bytes=100, state=InstallState.DOWNLOADING) == [1, 2, 3, 4, 5, 6]
    assert _kept(limits, free_bytes=99, state=InstallState.DOWNLOADING) == [2, 5, 6]
