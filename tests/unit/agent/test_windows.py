"""What waits for the update window of a device, what never does, and what it says meanwhile."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from planning import CANDIDATE, IDLE, LIMITS, NAME, an_install, digest, on_disk, settled, wanting
from regatta_agent.core import worker_outcomes
from regatta_agent.core.facts import Begin, Facts, JobKind, StartWorker, StopWorker, StoredVersion, WorkerFacts
from regatta_agent.core.installs import AgentRecord, Install
from regatta_agent.core.planner import wake_at
from regatta_agent.core.windows import unreadable
from regatta_protocol.ids import ModelName, ModelRef
from regatta_protocol.messages import DesiredModel, InstallState
from regatta_protocol.policy import Policy
from regatta_protocol.update_window import parse_window

_S = InstallState
FACES = ModelName("faces")
NIGHT = ("02:00-05:00 UTC",)
NOW_OPEN = ("00:00-01:00 UTC",)
OPENS_AT = 7200.0
NEXT = ModelRef(NAME, 2)
OF_FACES = an_install(1, _S.COMMITTED).model_copy(update={"name": FACES})
# It is 00:16 at IDLE, and version 1 serves.
CLOSED = replace(
    IDLE, stored=on_disk(1, 2), workers={ModelRef(NAME, 1): WorkerFacts(CANDIDATE, True, 99.0, "s1")},
    links={NAME: "s1"},
)  # fmt: skip
OPEN = replace(CLOSED, now_s=OPENS_AT)
METERED = replace(LIMITS, metered=True)


def beside(install: Install, window: tuple[str, ...] = NIGHT, *, ignore_window: bool = False) -> AgentRecord:
    """Return a record in which version 1 serves and `install` is wanted."""
    record = AgentRecord().with_install(an_install(1, _S.COMMITTED, committed_at=1.0)).with_install(install)
    return wanting(record, install.version, window=window, ignore_window=ignore_window)


def found(record: AgentRecord, ref: ModelRef = NEXT) -> Install:
    install = record.find(ref)
    assert install is not None
    return install


def with_worker(facts: Facts, *, ready_for_s: float = 0.0) -> Facts:
    """Return the facts with a ready worker of version 2."""
    return replace(facts, workers={**facts.workers, NEXT: WorkerFacts(CANDIDATE, True, ready_for_s, "s2")})


@pytest.mark.parametrize(
    ("state", "worker", "after"),
    [(_S.VERIFIED, False, _S.RACING), (_S.PLACED, False, _S.PLACED), (_S.PLACED, True, _S.ON_TRIAL)],
    ids=["race", "start", "take over"],
)
def test_race_start_and_switch_wait_for_the_window(state: InstallState, worker: bool, after: InstallState) -> None:
    """With the time at which it opens, for people and for the loop; when it is open they are done at once."""
    closed, opened = (with_worker(facts) if worker else facts for facts in (CLOSED, OPEN))
    record, steps = settled(beside(an_install(2, state)), closed)

    install = found(record)
    assert (install.state, install.reason) == (state, "waits: window opens 02:00 UTC")
    assert (install.opens_at, wake_at(record, closed)) == (OPENS_AT, OPENS_AT)
    assert not [step for step in steps if isinstance(step, Begin | StartWorker | StopWorker)]
    record, steps = settled(record, opened)
    assert (found(record).state, found(record).opens_at) == (after, None)
    assert any(isinstance(step, StartWorker) for step in steps) is (state is _S.PLACED and not worker)


@pytest.mark.parametrize("metered", [False, True])
@pytest.mark.parametrize(
    ("state", "kind"),
    [(_S.ASSIGNED, JobKind.AUTHORIZE), (_S.AUTHORIZED, JobKind.MANIFEST), (_S.DOWNLOADING, JobKind.FILES)],
)
def test_only_on_a_metered_link_a_download_waits(state: InstallState, kind: JobKind, metered: bool) -> None:
    """Metadata and manifests never; files are fetched ahead, but where bytes cost money and may be for nothing."""
    missing = {NEXT: StoredVersion(digest(2), 1, 500)} if state is _S.DOWNLOADING else {}
    facts = replace(CLOSED, stored={**on_disk(1), **missing})
    record, steps = settled(beside(an_install(2, state)), facts, METERED if metered else LIMITS)

    waits = metered and kind is JobKind.FILES
    assert (Begin(NEXT, kind) in steps) is not waits
    assert found(record).reason == ("waits: window opens 02:00 UTC" if waits else None)
    record, steps = settled(record, replace(facts, now_s=OPENS_AT), METERED if metered else LIMITS)
    assert Begin(NEXT, kind) in steps
    assert (found(record).reason, found(record).opens_at) == (None, None)


def test_a_trial_that_was_begun_ends_and_a_failure_leads_back_at_any_time() -> None:
    """What leads away from a failure waits for nothing, and neither does what is proven."""
    trial = beside(an_install(2, _S.ON_TRIAL))
    passed, _ = settled(trial, with_worker(CLOSED, ready_for_s=9.0))
    died, _ = settled(trial, with_worker(CLOSED))
    for _ in range(LIMITS.trial_deaths):
        died = worker_outcomes.worker_died(died, NEXT, "signal 11", 1.0, CLOSED.now_s, Random(1), LIMITS)

    assert found(passed).state is _S.COMMITTED
    assert found(died).state is _S.ROLLED_BACK
    worse, _ = settled(beside(an_install(2, _S.PLACED, accuracy=0.1)).with_install(
        an_install(1, _S.COMMITTED, accuracy=0.9)), CLOSED)  # fmt: skip
    assert found(worse).state is _S.ROLLED_BACK


def test_a_committed_version_is_started_again_and_fails_over_at_any_time() -> None:
    """Its worker's end has nothing to do with updates."""
    alone = wanting(AgentRecord().with_install(an_install(1, _S.COMMITTED, committed_at=1.0)), 1, window=NIGHT)
    _, steps = settled(alone, replace(CLOSED, workers={}))

    assert [type(step) for step in steps if isinstance(step, StartWorker)] == [StartWorker]


@pytest.mark.parametrize(
    ("others", "committed_at", "waits"),
    [
        ((), None, False),
        ((an_install(1, _S.COMMITTED),), None, True),
        ((OF_FACES,), None, True),
        ((OF_FACES,), 1.0, False),
        ((an_install(1, _S.RETIRED),), None, False),
    ],
    ids=[
        "nothing serves",
        "another version serves",
        "another model serves",
        "it serves and is mended",
        "none any more",
    ],
)
def test_there_must_be_something_to_disturb(
    others: tuple[Install, ...], committed_at: float | None, waits: bool
) -> None:
    """A board that serves nothing begins at once, and so does a version that serves and lost a file."""
    record = AgentRecord()
    for other in others:
        record = record.with_install(other)
    record = wanting(record.with_install(an_install(2, _S.VERIFIED, committed_at=committed_at)), 2, window=NIGHT)
    assert record.assignment is not None
    both = {**record.assignment.models, FACES: DesiredModel(version=1)}
    record = record.model_copy(update={"assignment": record.assignment.model_copy(update={"models": both})})
    stored = {**CLOSED.stored, ModelRef(FACES, 1): StoredVersion(digest(1), 0, 0)}
    record, _ = settled(record, replace(CLOSED, stored=stored, workers={}, links={}))

    assert found(record).state is (_S.VERIFIED if waits else _S.RACING)


def test_what_the_fleet_marks_as_urgent_waits_for_nothing() -> None:
    """An urgent rollout, and the way back of one that failed; also when it was waiting before."""
    record, _ = settled(beside(an_install(2, _S.VERIFIED)), CLOSED)
    assert found(record).state is _S.VERIFIED

    record, _ = settled(wanting(record, 2, window=NIGHT, ignore_window=True), CLOSED)
    assert found(record).state is _S.RACING
    record, steps = settled(beside(an_install(2, _S.RETIRED, committed_at=1.0), ignore_window=True), CLOSED)
    assert (found(record).state, StartWorker(NEXT, CANDIDATE, CANDIDATE) in steps) == (_S.PLACED, True)


@pytest.mark.parametrize(
    ("own", "fleet", "waits"), [(NIGHT, NOW_OPEN, True), (NOW_OPEN, NIGHT, False), ((), NIGHT, True), (NIGHT, (), True)]
)
def test_the_device_s_own_window_comes_before_the_fleet_s(
    own: tuple[str, ...], fleet: tuple[str, ...], waits: bool
) -> None:
    """One takes the other's place; they are not added."""
    limits = replace(LIMITS, update_window=tuple(map(parse_window, own)))
    record, _ = settled(beside(an_install(2, _S.VERIFIED), fleet), CLOSED, limits)

    assert (found(record).state is _S.VERIFIED) is waits


def test_a_window_that_cannot_be_read_is_not_waited_for_and_told() -> None:
    """A newer fleet's grammar, or a zone that this board does not know: as an agent that knows no windows would do."""
    record, _ = settled(beside(an_install(2, _S.VERIFIED), ("at full moon",)), CLOSED)
    both, _ = settled(beside(an_install(2, _S.VERIFIED), ("at full moon", *NIGHT)), CLOSED)

    assert found(record).state is _S.RACING
    assert found(both).state is _S.VERIFIED
    assert [text.partition(":")[0] for text in unreadable(record.assignment)] == ["'at full moon' is no update window"]


def test_without_a_clock_it_waits_for_the_clock_and_an_hour_at_most() -> None:
    """A board that never learns the time is updated all the same; one that does goes by the window."""
    unset = replace(CLOSED, clock_unset=True)
    record, _ = settled(beside(an_install(2, _S.VERIFIED)), replace(unset, running_s=3599.0))
    assert (found(record).state, found(record).opens_at) == (_S.VERIFIED, None)
    assert "clock is not set, so that it cannot tell when its update window opens" in (found(record).reason or "")
    assert "60 min after the agent's start" in (found(record).reason or "")

    later, _ = settled(record, replace(unset, running_s=3600.0))
    known, _ = settled(record, replace(CLOSED, running_s=3600.0))
    opened, _ = settled(record, replace(OPEN, running_s=60.0))
    assert (found(later).state, found(opened).state) == (_S.RACING, _S.RACING)
    assert found(known).reason == "waits: window opens 02:00 UTC"


@pytest.mark.parametrize("state", [_S.VERIFIED, _S.PLACED])
def test_a_newer_generation_supersedes_what_waits(state: InstallState) -> None:
    """It is withdrawn at once, and the newer one is fetched, to wait in its turn."""
    record, _ = settled(beside(an_install(2, state)), CLOSED)
    record, steps = settled(wanting(record, 3, "r3", window=NIGHT), CLOSED)

    assert (found(record).state, found(record).opens_at) == (_S.RETIRED, None)
    assert Begin(ModelRef(NAME, 3), JobKind.AUTHORIZE) in steps


@pytest.mark.parametrize("urgent", [False, True])
def test_a_new_race_beside_what_serves_waits_and_is_never_urgent(urgent: bool) -> None:
    """It loads the board for the sake of speed alone; what serves says why it waits, and then forgets it."""
    record = AgentRecord().with_install(an_install(1, _S.COMMITTED, committed_at=1.0))
    policy = Policy(objective="energy")
    record, _ = settled(wanting(record, 1, window=NIGHT, policy=policy, ignore_window=urgent), CLOSED)
    one = ModelRef(NAME, 1)

    assert found(record, one).reason == "waits: window opens 02:00 UTC, to race anew: its policy was changed"
    assert not found(record, one).racing_again
    record, steps = settled(record, OPEN)
    assert Begin(one, JobKind.RERACE) in steps
    assert (found(record, one).reason, found(record, one).opens_at) == (None, None)
