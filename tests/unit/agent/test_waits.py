"""Every wait of a version has its reason, and the documentation's table of them is the planner's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import pytest

from planning import CANDIDATE, IDLE, LIMITS, NAME, an_install, digest, settled, wanting
from regatta_agent.core import outcomes, worker_outcomes
from regatta_agent.core.facts import Begin, JobKind, StartWorker, StoredVersion, WorkerFacts
from regatta_agent.core.installs import AgentRecord
from regatta_agent.core.states import IN_PROGRESS, render_mermaid
from regatta_agent.core.waits import WAITS, Wait
from regatta_agent.errors import Unanswered, WrongClock
from regatta_protocol.errors import Exhausted, RegattaError, Retryable, StorageFull
from regatta_protocol.ids import ModelName, ModelRef
from regatta_protocol.messages import DesiredModel, InstallState

_S = InstallState
REF = ModelRef(NAME, 2)
OTHER = ModelRef(ModelName("faces"), 1)
NIGHT = ("02:00-05:00 UTC",)
KINDS = {
    _S.ASSIGNED: JobKind.AUTHORIZE, _S.AUTHORIZED: JobKind.MANIFEST, _S.DOWNLOADING: JobKind.FILES,
    _S.RACING: JobKind.RACE,
}  # fmt: skip
SERVING = WorkerFacts(CANDIDATE, True, 99.0, "s1")
READY = WorkerFacts(CANDIDATE, True, 0.0, "s2")


@dataclass(frozen=True)
class Case:
    """A version in a state, what befalls it, and the wait that comes of it."""

    begins: InstallState
    reason: str  # of WAITS
    waits_in: InstallState | None = None  # None: where it begins
    error: RegattaError | None = None  # that its job ends with
    deaths: int = 0  # of its worker
    starved: StorageFull | Exhausted | None = None  # what its worker lacks
    window: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    metered: bool = False
    wanted: Mapping[str, Any] = field(default_factory=dict)
    shadow_s: float = 0.0
    lost_starts: int = 0  # of another model's version

    @property
    def state(self) -> InstallState:
        return self.waits_in or self.begins


def _asking(reason: str, **fields: Any) -> list[Case]:
    return [Case(state, reason, **fields) for state in (_S.ASSIGNED, _S.AUTHORIZED, _S.DOWNLOADING)]


def _failing(reason: str, error: RegattaError) -> list[Case]:
    return [*_asking(reason, error=error), Case(_S.RACING, reason, _S.VERIFIED, error=error)]


_WINDOW, _NO_CLOCK = "waits: window opens …", "waits: this board's clock is not set, …"
_SILENT = Unanswered("the fleet sends nothing of file 0123456789ab, however often it is asked")
CASES = [
    *(Case(s, "waiting: … is first (…)", facts={"jobs": {OTHER: kind}}) for s, kind in KINDS.items()),
    Case(_S.RACING, "waiting: … is first (…)", facts={"jobs": {OTHER: JobKind.RERACE}}),
    *_asking("offline: it goes on when the broker can be reached", facts={"online": False}),
    *_asking("offline: this board's clock is not set, …", facts={"online": False, "clock_unset": True}),
    *_failing("attempt … of …: …; next in … s", Retryable("the verifier ended with status 1")),
    Case(
        _S.ASSIGNED, "no answer about the signed metadata …",
        error=Unanswered("no answer about the signed metadata within 30 s"),
    ),
    Case(_S.AUTHORIZED, "the fleet sends nothing of file …", error=_SILENT),
    Case(_S.DOWNLOADING, "the fleet sends nothing of file …", error=_SILENT),
    Case(_S.ASSIGNED, "clock not set: …", error=WrongClock("clock not set: it is 1970 on this board")),
    *_failing("no resources left …", Exhausted("no resources left for a race (EMFILE): it goes on when some are free")),
    *_failing("no space left …", StorageFull("no space left for digits:2: free some and it goes on")),
    Case(
        _S.RACING, "the race failed with … bytes free …", _S.VERIFIED,
        error=StorageFull("the race failed with 9 bytes free in /tmp: free some and it goes on"),
    ),
    Case(_S.DOWNLOADING, "needs … MB and … MB reserve, … MB free: …", facts={"free_bytes": 10}),
    Case(_S.DOWNLOADING, _WINDOW, window=NIGHT, metered=True),
    Case(_S.VERIFIED, _WINDOW, window=NIGHT),
    Case(_S.PLACED, _WINDOW, window=NIGHT),
    Case(_S.PLACED, _WINDOW, window=NIGHT, facts={"workers": {ModelRef(NAME, 1): SERVING, REF: READY}}),
    Case(_S.DOWNLOADING, _NO_CLOCK, window=NIGHT, metered=True, facts={"clock_unset": True}),
    Case(_S.VERIFIED, _NO_CLOCK, window=NIGHT, facts={"clock_unset": True}),
    Case(_S.PLACED, _NO_CLOCK, window=NIGHT, facts={"clock_unset": True}),
    Case(
        _S.PLACED, "in the shadow of … for … s", shadow_s=60.0,
        facts={"workers": {ModelRef(NAME, 1): SERVING, REF: READY}},
    ),
    Case(_S.PLACED, "its worker cannot be started: …", starved=Exhausted("no process can be started")),
    Case(_S.COMMITTED, "its worker cannot be started: …", starved=StorageFull("no space left for its socket")),
    *(
        Case(state, "waiting: … starts alone, for the board ended while it was starting … times", lost_starts=2)
        for state in (_S.VERIFIED, _S.PLACED, _S.COMMITTED)
    ),
    Case(_S.ON_TRIAL, "on trial for … s", facts={"workers": {REF: READY}}),
    Case(_S.COMMITTED, "its worker ended (…); it starts again in … s", deaths=7),
    Case(
        _S.COMMITTED, "waits: window opens …, to race anew: …", window=NIGHT,
        wanted={"policy": {"objective": "energy"}}, facts={"workers": {REF: SERVING}},
    ),
]  # fmt: skip


def _wait(case: Case) -> Wait:
    return next(wait for wait in WAITS if wait.reason == case.reason and case.state in wait.states)


def _beside_a_last_start(record: AgentRecord, lost_starts: int) -> AgentRecord:
    assert record.assignment is not None
    models = {OTHER.name: DesiredModel(version=1, rollout="r"), **record.assignment.models}
    suspect = an_install(1, _S.COMMITTED, lost_starts=lost_starts).model_copy(update={"name": OTHER.name})
    record = record.model_copy(update={"assignment": record.assignment.model_copy(update={"models": models})})
    return record.with_install(suspect)


@pytest.mark.parametrize("case", CASES, ids=[f"{case.state}: {case.reason}" for case in CASES])
def test_a_wait_says_why(case: Case) -> None:
    """In every state, for every cause: the reason of the table, and nothing is begun while it holds."""
    race = an_install(2, case.begins).race
    assert race is not None
    install = an_install(2, case.begins, race=race.model_copy(update={"shadow_s": case.shadow_s}))
    record = AgentRecord()
    if case.begins is not _S.COMMITTED:
        record = record.with_install(an_install(1, _S.COMMITTED, committed_at=1.0))
    record = wanting(record.with_install(install), 2, window=case.window, **case.wanted)
    if case.lost_starts:
        record = _beside_a_last_start(record, case.lost_starts)
    rng = Random(3)
    if case.error is not None:
        record = outcomes.failed(record, REF, case.error, IDLE.now_s, rng, LIMITS, IDLE.free_bytes)
    for _ in range(case.deaths):
        record = worker_outcomes.worker_died(record, REF, "signal 11", 1.0, IDLE.now_s, rng, LIMITS)
    if case.starved is not None:
        record = worker_outcomes.starved(record, REF, case.starved, IDLE.now_s, rng, LIMITS, IDLE.free_bytes)
    stored = {ref: StoredVersion(digest(1), 0, 0) for ref in (ModelRef(NAME, 1), OTHER)}
    if case.begins is _S.DOWNLOADING:
        stored[REF] = StoredVersion(digest(2), 1, 500)
    elif case.begins not in KINDS:
        stored[REF] = StoredVersion(digest(2), 0, 0)
    facts = replace(IDLE, stored=stored, **case.facts)
    record, steps = settled(record, facts, replace(LIMITS, metered=case.metered))

    waiting = record.find(REF)
    assert waiting is not None
    pattern = ".+".join(map(re.escape, _wait(case).reason.split("…")))
    assert (waiting.state, bool(re.fullmatch(pattern, waiting.reason or ""))) == (case.state, True), waiting.reason
    assert not [step for step in steps if isinstance(step, Begin | StartWorker) and step.ref == REF]


def test_the_table_is_whole_and_in_the_documentation() -> None:
    """Each of its reasons is shown by a case above in each of its states; no state in progress is without one."""
    told = {(state, wait.reason) for wait in WAITS for state in wait.states}

    assert {(case.state, case.reason) for case in CASES} == told
    assert {state for state, _ in told} >= IN_PROGRESS
    assert all(f"| `{wait.reason}` |" in render_mermaid() for wait in WAITS)
