"""Who stands in for a winner, when it is retried, and when a version is raced again: tables and properties."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planning import IDLE, NAME, a_report, an_install, on_disk, settled, wanting
from regatta_agent.core import outcomes, worker_outcomes
from regatta_agent.core.facts import Begin, JobKind, Limits, Point, StartWorker, StopWorker, WorkerFacts
from regatta_agent.core.health import judge_trial
from regatta_agent.core.installs import AgentRecord, Degradation, Install, RaceSummary
from regatta_agent.core.rerace import drifted, rerace_failed, rerace_reason, reraced, successor_died, why_stays
from regatta_agent.core.retries import DAY_S, RetryLimits, next_retry, of_the_last_day
from regatta_agent.core.standbys import next_candidate, standbys_for, start_of
from regatta_protocol.errors import Retryable
from regatta_protocol.ids import ModelRef
from regatta_protocol.manifest import Policy
from regatta_protocol.measurement import Outcome
from regatta_protocol.messages import InstallState
from regatta_protocol.values import Power

CPU, PLAIN, TPU, TPU_TOO = (
    "litert/int8/xnnpack/t1",
    "litert/int8/none/t1",
    "litert/edge/edgetpu/t1",
    "tflite/e2/edgetpu/t1",
)
REF = ModelRef(NAME, 1)
LIMITS = Limits(disk_reserve_bytes=0)


def committed(*ranked: str, **fields: object) -> Install:
    race = RaceSummary(placement=ranked[0], ranked=ranked, versions={"litert": "2.3"}, at=IDLE.now_s - 86_400.0)
    return an_install(1, InstallState.COMMITTED, None, **{"race": race, "placement": ranked[0], **fields})


def record_of(install: Install) -> AgentRecord:
    return wanting(AgentRecord().with_install(install), 1)


def found(record: AgentRecord) -> Install:
    install = record.find(REF)
    assert install is not None
    return install


# who


def test_nobody_on_the_same_accelerator_stands_in_for_it() -> None:
    """What ended the winner would end them too; on the processor any other candidate may."""
    install = committed(TPU, TPU_TOO, CPU, PLAIN)

    assert standbys_for(install, TPU) == (CPU, PLAIN)
    assert standbys_for(install, CPU) == (TPU, TPU_TOO, PLAIN)


def test_a_worker_is_told_of_its_standbys_and_of_a_winner_at_rest() -> None:
    """The placement first; after a failover the winner rests behind a guard, and is retried."""
    told = Degradation(placement=CPU, reason="it ended 3 times", since=1.0)
    after = committed(PLAIN, CPU, placement=CPU, degraded=told, guarded=True, retried=(5.0,))

    assert start_of(committed(TPU, CPU), TPU) == StartWorker(REF, TPU, TPU, (CPU,))
    assert start_of(after, CPU) == StartWorker(REF, CPU, PLAIN, (CPU,), True, "it ended 3 times", (5.0,))


def test_the_last_of_the_ranked_is_followed_by_the_first() -> None:
    """A placement that is not ranked, or alone, has nobody or the first after it."""
    assert next_candidate(committed(CPU, PLAIN)) == PLAIN
    assert next_candidate(committed(CPU, PLAIN, placement=PLAIN)) == CPU
    assert next_candidate(committed(CPU)) is None
    assert next_candidate(committed(CPU, placement=PLAIN)) == CPU


# deaths


def test_the_first_deaths_wait_for_nothing_then_the_next_best_serves_guarding_the_winner() -> None:
    """Three deaths in a row: restarted at once each time, the third time as the next candidate; the reason is kept."""
    record, waits = record_of(committed(CPU, PLAIN)), []
    for _ in range(3):
        record = worker_outcomes.worker_died(record, REF, "signal 11", 1.0, 1000.0, Random(1), LIMITS)
        waits.append((found(record).not_before or 0.0) - 1000.0)
    after = found(record)

    assert waits == [0.0, 0.0, 0.0]
    assert (after.placement, after.winner, after.guarded, after.state) == (PLAIN, CPU, True, InstallState.COMMITTED)
    assert after.degraded is not None
    assert (after.degraded.placement, after.degraded.since) == (PLAIN, 1000.0)
    assert "ended its worker 3 times (signal 11)" in after.degraded.reason


def test_when_all_keep_dying_the_waits_grow_to_their_cap() -> None:
    """No candidate restarts without a pause for ever."""
    record, waits = record_of(committed(CPU, PLAIN)), []
    rng = Random(2)
    for _ in range(40):
        record = worker_outcomes.worker_died(record, REF, "signal 11", 1.0, 1000.0, rng, LIMITS)
        waits.append((found(record).not_before or 0.0) - 1000.0)

    assert all(wait <= 60.0 for wait in waits)
    assert sum(waits[20:]) / 20 > 15.0


def test_a_winner_taken_back_serves_again_and_its_retries_are_remembered() -> None:
    """From the worker's word: placement, degraded and retries; a stranger's word changes nothing."""
    told = Degradation(placement=PLAIN, reason="x", since=1.0)
    record = record_of(committed(CPU, PLAIN, placement=PLAIN, degraded=told))

    back = found(worker_outcomes.winner_back(record, REF, CPU, (7.0,)))

    assert (back.placement, back.degraded, back.retried) == (CPU, None, (7.0,))
    assert worker_outcomes.winner_back(record, REF, TPU, ()) == record


def test_a_worker_s_degradation_keeps_its_beginning_and_ends_with_the_worker() -> None:
    """`since` is of the first word; a new worker begins with the winner, so nothing is degraded before it says so."""
    record = record_of(committed(TPU, CPU))
    record = worker_outcomes.degraded(record, REF, Degradation(placement=CPU, reason="hung", since=5.0), ())
    record = worker_outcomes.degraded(record, REF, Degradation(placement=CPU, reason="hung again", since=9.0), (8.0,))
    told = found(record).degraded

    assert told is not None
    assert (told.reason, told.since, found(record).retried) == ("hung again", 5.0, (8.0,))
    assert found(worker_outcomes.worker_died(record, REF, "x", 1.0, 9.0, Random(1), LIMITS)).degraded is None
    assert found(outcomes.recovered(record, LIMITS)).degraded is None


def test_a_version_whose_winner_fails_on_trial_goes_back_unless_the_board_is_at_fault() -> None:
    """Degraded beside a healthy predecessor is a failed trial; beside a degraded one it is not."""
    told = Degradation(placement=CPU, reason="SIGSEGV", since=1.0)
    install, worker = committed(TPU, CPU, degraded=told), WorkerFacts(TPU, True, 99.0, "s")

    refused = judge_trial(install, worker, committed(TPU))

    assert refused.passed is False
    assert "SIGSEGV" in refused.reason
    assert judge_trial(install, worker, committed(TPU, degraded=told)).passed
    assert judge_trial(install, worker, None).passed


# retries


@given(st.integers(0, 2**32), st.floats(0.1, 100.0), st.integers(1, 50))
def test_retries_are_bounded_in_a_day_whatever_the_jitter(seed: int, base_s: float, per_day: int) -> None:
    """However often the winner fails at once, no 24 hours hold more retries than allowed, and none waits over a day."""
    rng, limits = Random(seed), RetryLimits(base_s, 1800.0, per_day)
    times: list[float] = []
    now = 0.0
    for _ in range(3 * per_day):
        due = next_retry(times, now, rng, limits)
        assert now <= due <= now + DAY_S
        now = due
        times.append(now)
        assert len(of_the_last_day(times, now + 0.001)) <= per_day  # a sum of floats may end just before the day does


def test_a_clock_that_jumped_back_forgets_the_future() -> None:
    """Retries that lie ahead do not count."""
    assert of_the_last_day((500.0, 1e9), 1000.0) == (500.0,)


# new races


@pytest.mark.parametrize(
    ("change", "versions", "why"),
    [
        ({}, {"litert": "2.3"}, None),
        ({}, {"litert": "2.4"}, "litert was 2.3 in the race and is 2.4"),
        ({}, {"litert": "2.3", "edgetpu": "16"}, "edgetpu was absent in the race and is 16"),
        ({}, {}, None),
        ({"rerace": "it drifted"}, {"litert": "2.3"}, "it drifted"),
        ({"rerace": "it drifted", "reraced_at": 999.0}, {"litert": "2.4"}, None),
        ({"rerace": "it drifted", "reraced_at": 9e9}, {"litert": "2.3"}, "it drifted"),
        ({"degraded": Degradation(placement=PLAIN, reason="x", since=1.0)}, {"litert": "2.4"}, None),
        ({"successor": RaceSummary(placement=PLAIN)}, {"litert": "2.4"}, None),
    ],
)
def test_a_new_race_is_due_by_its_reasons_and_not_too_soon(
    change: dict[str, object], versions: dict[str, str], why: str | None
) -> None:
    """A version changed or new, and drift, ask for one; the interval, a degradation or a pending one hold it back."""
    assert rerace_reason(committed(CPU, PLAIN, **change), replace(IDLE, versions=versions), LIMITS) == why


def test_a_race_of_an_older_agent_noted_no_versions_and_is_not_repeated_for_that() -> None:
    """An upgrade of the agent does not make a whole fleet race."""
    install = committed(CPU, race=RaceSummary(placement=CPU, ranked=(CPU,)))

    assert rerace_reason(install, replace(IDLE, versions={"litert": "2.4"}), LIMITS) is None


@pytest.mark.parametrize(
    ("figures", "stays"),
    [
        ({"xnnpack": 50.0, "none": 80.0}, "it won again"),
        ({"xnnpack": 50.0, "none": 45.0}, "by less than"),
        ({"xnnpack": 50.0, "none": 39.0}, None),
        ({"xnnpack": Outcome.CREATE_FAILED, "none": 9.0}, "could not be compared"),
        ({"none": 9.0}, "could not be compared"),
        ({"xnnpack": Outcome.WRONG_OUTPUT, "none": 99.0}, None),
        ({"xnnpack": Outcome.INACCURATE, "none": 99.0}, None),
    ],
)
def test_the_placement_stays_unless_another_is_clearly_better(
    figures: dict[str, float | Outcome], stays: str | None
) -> None:
    """An accelerator that the serving worker holds cannot be measured, and that is no reason to leave it."""
    told = why_stays(a_report(1, **figures), CPU)

    assert (told is None) == (stays is None)
    assert stays is None or stays in (told or "")


def test_by_energy_the_joules_count() -> None:
    """Faster and hungrier is not better when the policy asks for energy."""
    report = a_report(1, xnnpack=50.0, none=9.0)
    energies = {"xnnpack": 3.0, "none": 2.9}
    candidates = tuple(
        one.model_copy(update={"power": Power(method="measured", energy_per_inference_mj=energies[one.delegate])})
        for one in report.candidates
    )

    assert "by less than" in (
        why_stays(report.model_copy(update={"candidates": candidates, "objective": "energy"}), CPU) or ""
    )


def test_a_better_placement_takes_over_when_its_worker_is_ready_and_not_before() -> None:
    """Race beside the worker, second worker, rename, and only then the first one ends."""
    serving = WorkerFacts(CPU, True, 99.0, "one")
    facts = replace(IDLE, stored=on_disk(1), workers={REF: serving}, links={NAME: "one"}, versions={"litert": "2.4"})
    record, steps = settled(record_of(committed(CPU, PLAIN)), facts)
    assert Begin(REF, JobKind.RERACE) in steps
    assert found(record).reraced_at == facts.now_s

    report = a_report(1, xnnpack=50.0, none=9.0)
    summary = outcomes.summary_of(report, Policy(), facts.versions, facts.now_s)
    record = reraced(record, REF, report, summary)
    record, steps = settled(record, facts)
    assert StartWorker(REF, PLAIN, PLAIN, (CPU,)) in steps
    assert not [step for step in steps if isinstance(step, Point | StopWorker)]

    second = WorkerFacts(PLAIN, False, 0.0, "two")
    assert not settled(record, replace(facts, successors={REF: second}))[1][:-1]
    record, steps = settled(record, replace(facts, successors={REF: replace(second, ready=True)}))
    assert steps[:2] == [Point(REF, "two"), StopWorker(REF, "one")]
    assert (found(record).placement, found(record).state) == (PLAIN, InstallState.COMMITTED)


def test_the_worker_of_a_better_placement_serves_when_the_first_one_dies() -> None:
    """It is ready, so nobody waits for the old placement."""
    install = committed(CPU, PLAIN, successor=RaceSummary(placement=PLAIN, ranked=(PLAIN, CPU)))
    second = WorkerFacts(PLAIN, True, 1.0, "two")

    record, steps = settled(record_of(install), replace(IDLE, stored=on_disk(1), workers={REF: second}))

    assert found(record).placement == PLAIN
    assert Point(REF, "two") in steps


def test_a_successor_that_dies_changes_nothing_and_is_not_tried_again_for_the_same_versions() -> None:
    """What serves goes on, with the reason."""
    next_race = RaceSummary(placement=PLAIN, ranked=(PLAIN, CPU), versions={"litert": "2.4"}, at=IDLE.now_s)
    record = successor_died(record_of(committed(CPU, PLAIN, successor=next_race)), REF, "signal 11")
    after = found(record)

    assert (after.placement, after.successor, after.winner) == (CPU, None, CPU)
    assert "signal 11" in (after.reason or "")
    later = replace(IDLE, now_s=IDLE.now_s + 9 * 3600.0, versions={"litert": "2.4"})
    assert rerace_reason(after, later, LIMITS) is None


def test_a_race_that_failed_is_repeated_after_the_interval_and_a_restart_does_not_hasten_it() -> None:
    """Neither a loop of failures nor one of reboots races without end."""
    install = committed(CPU, rerace="it drifted", reraced_at=IDLE.now_s, racing_again=True)
    failed = rerace_failed(record_of(install), REF, Retryable("out of processes"))
    for after in (failed, outcomes.recovered(record_of(install), LIMITS)):
        assert not found(after).racing_again
        assert rerace_reason(found(after), IDLE, LIMITS) is None
        assert rerace_reason(found(after), replace(IDLE, now_s=IDLE.now_s + 7 * 3600.0), LIMITS) == "it drifted"


def test_a_winner_by_a_changed_policy_whose_worker_ends_is_not_raced_for_over_and_over() -> None:
    """What serves stays, with the reason, until the policy changes again."""
    install = committed(CPU, policy=Policy(objective="energy"))
    assert install.race is not None
    successor = install.race.model_copy(update={"placement": PLAIN, "policy": install.policy})
    waiting = install.model_copy(update={"successor": successor})

    after = found(successor_died(record_of(waiting), REF, "signal 11"))

    assert rerace_reason(install, IDLE, LIMITS) == "its policy was changed"
    assert after.race is not None
    assert (after.race.placement, after.race.policy) == (CPU, install.policy)
    assert "its worker ended: signal 11" in (after.race.unmet or "")
    assert rerace_reason(after, IDLE, LIMITS) is None


def test_drift_of_what_does_not_serve_is_no_news() -> None:
    """Only the placement's own figures count."""
    record = record_of(committed(CPU, PLAIN))

    assert drifted(record, REF, PLAIN, 10.0, 20.0) == record
    assert "takes 20 us and took 10 us" in (found(drifted(record, REF, CPU, 10.0, 20.0)).rerace or "")
