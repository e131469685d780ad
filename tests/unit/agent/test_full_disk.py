"""A disk that stays full is tried at most once an hour at every stage of an update, and at once when space has come.

The pure core alone, with a clock that is a number: what each step writes, and the real disk, are in
tests/scenario/test_scarcity.py and tests/crash.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planning import IDLE, LIMITS, NAME, an_install, on_disk, settled, wanting
from regatta_agent.core import outcomes, worker_outcomes
from regatta_agent.core.facts import Begin, Facts, StartWorker
from regatta_agent.core.installs import AgentRecord
from regatta_agent.disk.patience import Patience
from regatta_protocol.errors import Exhausted, StorageFull
from regatta_protocol.ids import ModelRef
from regatta_protocol.messages import InstallState

_REF = ModelRef(NAME, 1)
_HOURS = 12
_MINUTE_S = 60.0
_STEP_S = 5 * _MINUTE_S
_FULL = StorageFull("no space left for it: free some and it goes on")

STAGES = {  # what is done in each state, and what is missing on the disk then
    "metadata": (InstallState.ASSIGNED, None),
    "manifest": (InstallState.AUTHORIZED, None),
    "download": (InstallState.DOWNLOADING, 1000),
    "race": (InstallState.VERIFIED, 0),
    "first worker": (InstallState.PLACED, 0),
    "trial": (InstallState.ON_TRIAL, 0),
    "worker": (InstallState.COMMITTED, 0),
}


def tried(record: AgentRecord, facts: Facts) -> tuple[AgentRecord, bool]:
    """Return the record and whether something was begun that writes to a disk."""
    record, steps = settled(record, facts)
    return record, any(isinstance(step, Begin | StartWorker) and step.ref == _REF for step in steps)


def refused(record: AgentRecord, facts: Facts, rng: Random, error: StorageFull | Exhausted = _FULL) -> AgentRecord:
    """Return the record after the disk refused what was begun, as the loop writes it down."""
    space_bytes = facts.free_bytes + facts.run_free_bytes
    install = record.find(_REF)
    assert install is not None
    with_worker = install.state in (InstallState.PLACED, InstallState.COMMITTED)
    after = worker_outcomes.starved if with_worker else outcomes.failed
    return after(record, _REF, error, facts.now_s, rng, LIMITS, space_bytes)


def at(stage: str) -> tuple[AgentRecord, Facts]:
    state, missing_bytes = STAGES[stage]
    stored = {} if missing_bytes is None else on_disk(1, missing_bytes=missing_bytes)
    record = wanting(AgentRecord().with_install(an_install(1, state)), 1)
    return record, replace(IDLE, stored=stored, free_bytes=2_000_000, run_free_bytes=500_000)


@pytest.mark.parametrize("stage", STAGES)
@settings(max_examples=5)
@given(seed=st.integers(0, 2**32), noise=st.lists(st.integers(-400_000, 400_000), min_size=1, max_size=20))
def test_a_full_disk_is_tried_at_most_once_an_hour_and_at_once_with_space(
    stage: str, seed: int, noise: list[int]
) -> None:
    """Whatever logs come and go meanwhile; no attempt is spent, nothing fails, and the reason is told all the time."""
    rng = Random(seed)
    record, facts = at(stage)
    tried_s: list[float] = []
    for step in range(int(_HOURS * 3600 / _STEP_S)):
        now_s = facts.now_s + step * _STEP_S
        record, begun = tried(record, replace(facts, now_s=now_s, free_bytes=facts.free_bytes + rng.choice(noise)))
        if begun:
            tried_s.append(now_s)
            record = refused(record, replace(facts, now_s=now_s), rng)
        install = record.find(_REF)
        assert install is not None and "no space left" in (install.reason or "")
    gaps_s = [after - before for before, after in itertools.pairwise(tried_s)]
    assert min(gaps_s) >= LIMITS.space_wait_s
    assert len(tried_s) >= _HOURS - 2, "it is not given up either"
    assert install is not None
    assert install.attempt == 0
    assert install.state not in (InstallState.FAILED, InstallState.ROLLED_BACK)

    soon = replace(facts, now_s=tried_s[-1] + 1.0)
    assert not tried(record, soon)[1]
    assert tried(record, replace(soon, free_bytes=3_000_000))[1]
    assert tried(record, replace(soon, run_free_bytes=1_500_000))[1]


@pytest.mark.parametrize("stage", STAGES)
def test_space_that_was_missing_once_shortens_no_later_wait(stage: str) -> None:
    """What came of a full disk is over with the next outcome: a fault that has nothing to do with it waits its time."""
    rng = Random(1)
    record, facts = at(stage)
    record, begun = tried(record, facts)
    assert begun
    record = refused(record, facts, rng)
    freed = replace(facts, free_bytes=10**9)
    record, begun = tried(record, freed)
    assert begun
    for _ in range(20):  # so that the jitter of one of them is long
        record = refused(record, freed, rng, Exhausted("no memory left"))
        install = record.find(_REF)
        assert install is not None and install.not_before is not None
        if install.not_before > freed.now_s + 1.0:
            break

    assert not tried(record, freed)[1]


@given(st.lists(st.integers(-60_000, 60_000), min_size=1, max_size=20), st.integers(0, 2**32))
def test_record_and_telemetry_leave_a_full_disk_alone_as_long(noise: list[int], seed: int) -> None:
    """The same rule where the loop itself writes; 64 KiB more are enough there."""
    rng, patience = Random(seed), Patience(3600.0)
    tries = 0
    for minute in range(_HOURS * 60):
        free_bytes = 1_000_000 + rng.choice(noise)
        if patience.may_ask(minute * _MINUTE_S, free_bytes):
            tries += 1
            patience.refused(_FULL, minute * _MINUTE_S, 1_000_000)

    assert tries == _HOURS
    assert patience.may_ask(_HOURS * 3600.0 - _MINUTE_S, 1_100_000)
