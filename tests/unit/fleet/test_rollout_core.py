"""The tables of rollouts and waves, waves' planning, cohorts, and the gate."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regatta_fleet.core.cohorts import Member, resolve
from regatta_fleet.core.gates import Baseline, Outcome, Trial, Verdict, allowed_failures, judge
from regatta_fleet.core.rollout import (
    ROLLOUT_TABLE,
    WAVE_TABLE,
    EffectKind,
    Rollout,
    RolloutEvent,
    Wave,
    WaveEvent,
    abort,
    advance,
    next_rollout_state,
    next_wave_state,
    outcome_of,
    promote,
)
from regatta_fleet.core.waves import plan_waves
from regatta_fleet.schemas import GateConfig, RolloutState, WaveState
from regatta_protocol.errors import Rejected
from regatta_protocol.ids import DeviceId, ModelName, ModelRef
from regatta_protocol.messages import InstallState, ModelReport

REF = ModelRef(ModelName("digits"), 2)
OVER = (RolloutState.COMPLETED, RolloutState.ROLLED_BACK, RolloutState.ABORTED)


@pytest.mark.parametrize(("state", "event"), [*itertools.product(RolloutState, RolloutEvent)])
def test_every_pair_of_a_rollout_is_in_the_table_or_refused(state: RolloutState, event: RolloutEvent) -> None:
    """A rollout that is over knows no event; any other pair leads where the table says or is refused."""
    if (state, event) in ROLLOUT_TABLE:
        assert next_rollout_state(state, event) is ROLLOUT_TABLE[state, event]
        assert state not in OVER
    else:
        with pytest.raises(Rejected, match=str(state)):
            next_rollout_state(state, event)


@pytest.mark.parametrize(("state", "event"), [*itertools.product(WaveState, WaveEvent)])
def test_every_pair_of_a_wave_is_in_the_table_or_refused(state: WaveState, event: WaveEvent) -> None:
    """A promoted wave stays promoted; any other pair leads where the table says or is refused."""
    if (state, event) in WAVE_TABLE:
        assert next_wave_state(state, event) is WAVE_TABLE[state, event]
        assert state is not WaveState.PROMOTED
    else:
        with pytest.raises(Rejected, match=str(state)):
            next_wave_state(state, event)


_shares = st.lists(st.floats(0.001, 0.999), max_size=6, unique=True).map(lambda some: (*sorted(some), 1.0))


@given(count=st.integers(1, 300), shares=_shares, rollout=st.text(max_size=8))
def test_every_device_is_in_exactly_one_wave(count: int, shares: tuple[float, ...], rollout: str) -> None:
    """No device is left out or twice in; no wave is empty; shares are reached and overshot by less than one device."""
    devices = [DeviceId(f"d{number}") for number in range(count)]
    waves = plan_waves(devices, shares, rollout)

    assert sorted(itertools.chain(*waves)) == sorted(devices)
    assert all(waves)
    assert waves == plan_waves(devices[::-1], shares, rollout)
    reached = set(itertools.accumulate(len(wave) for wave in waves))
    for share in shares:
        assert any(share * count - 1e-6 <= total < share * count + 1 for total in reached)


def test_another_rollout_begins_with_another_device() -> None:
    """No device is the canary of every rollout."""
    devices = [DeviceId(f"d{number}") for number in range(20)]
    assert len({plan_waves(devices, (0.05, 1.0), f"r{number}")[0] for number in range(20)}) > 5


@pytest.mark.parametrize("shares", [(), (0.5,), (0.5, 0.5, 1.0), (0.0, 1.0), (1.0, 0.5), (0.5, 1.5), (-1.0, 1.0)])
def test_shares_that_do_not_grow_to_1_are_refused(shares: tuple[float, ...]) -> None:
    """The words say what to write instead."""
    with pytest.raises(Rejected, match=r"for example 0\.1, 0\.5, 1"):
        plan_waves([DeviceId("a")], shares, "r")


def test_cohorts() -> None:
    """`all`, groups and ids add up, once each; what names nothing is refused with what there is."""
    a, b, c = DeviceId("a"), DeviceId("b"), DeviceId("c")
    members = [Member(a, "lab"), Member(b, "lab"), Member(c, "field")]

    assert resolve(["all"], members) == (a, b, c)
    assert resolve(["group:lab", "a", "c"], members) == (a, b, c)
    assert resolve(["group:field"], members) == (c,)
    with pytest.raises(Rejected, match="field, lab"):
        resolve(["group:attic"], members)
    with pytest.raises(Rejected, match="'z'"):
        resolve(["z"], members)
    with pytest.raises(Rejected, match="not valid"):
        resolve(["Not An Id"], members)
    for nobody in ([], ["all"]):
        with pytest.raises(Rejected, match="for no device"):
            resolve(nobody, [])


def _trial(name: str, outcome: Outcome, accuracy: float | None, before: float | None, **more: float) -> Trial:
    baseline = None if before is None else Baseline(1, before, more.get("p99_before"))
    return Trial(DeviceId(name), outcome, "its reason", accuracy, more.get("p99"), baseline)


GOOD, BAD, OPEN = Outcome.SUCCEEDED, Outcome.FAILED, Outcome.PENDING


def test_the_gate_says_in_plain_words_how_accuracy_fell() -> None:
    """The devices went back by themselves; what they had measured is the reason."""
    trials = [_trial("a", BAD, 0.41, 0.98), _trial("b", BAD, 0.41, 0.98)]
    judgement = judge(REF, trials, GateConfig(), 5)

    assert judgement.verdict is Verdict.FAIL
    assert judgement.reason == "2 of 2 devices measured accuracy 0.41, 57 points below digits:1 (0.98); allowed 2"


@pytest.mark.parametrize(
    ("trials", "gate", "waited_s", "verdict", "words"),
    [
        ([_trial("a", GOOD, 0.98, 0.98)], {}, 1, Verdict.PROMOTE, "1 of 1 device committed digits:2"),
        ([_trial("a", GOOD, 0.98, None)], {}, 1, Verdict.PROMOTE, "no version before it to compare with"),
        ([_trial("a", GOOD, None, 0.98)], {}, 1, Verdict.PROMOTE, "accuracy not applicable"),
        ([_trial("a", GOOD, 0.96, 0.98)], {}, 1, Verdict.PROMOTE, "2 points below digits:1"),
        ([_trial("a", GOOD, 0.95, 0.98)], {}, 1, Verdict.FAIL, "3 points below digits:1 (0.98); allowed 2"),
        ([_trial("a", GOOD, 0.99, 0.98)], {}, 1, Verdict.PROMOTE, "1 point above digits:1"),
        # Paired: the better board does not hide that both lost
        ([_trial("a", GOOD, 0.90, 0.95), _trial("b", GOOD, 0.80, 0.85)], {}, 1, Verdict.FAIL, "5 points below"),
        ([_trial("a", OPEN, None, 0.98)], {}, 1, Verdict.WAIT, "waiting for a of 1 device"),
        ([_trial("a", OPEN, None, 0.98)], {"timeout_s": 60}, 60, Verdict.FAIL, "undecided: a (its reason)"),
        ([_trial("a", BAD, None, 0.98)], {}, 1, Verdict.FAIL, "1 of 1 device failed, at most 0 may: a (its reason)"),
        (
            [_trial("a", BAD, None, None), _trial("b", GOOD, 0.98, 0.98)],
            {"min_success_ratio": 0.5},
            1,
            Verdict.PROMOTE,
            "1 of 2 devices committed",
        ),
        (  # an offline device is waited for, and then counts as not succeeded
            [_trial("a", OPEN, None, None), _trial("b", GOOD, 0.98, 0.98)],
            {"min_success_ratio": 0.5, "timeout_s": 60},
            61,
            Verdict.PROMOTE,
            "1 of 2 devices committed",
        ),
        (
            [_trial("a", GOOD, 0.98, 0.98, p99=9000, p99_before=3000)],
            {},
            1,
            Verdict.FAIL,
            "p99 latency is 3.00 times that before; allowed 2",
        ),
        (
            [_trial("a", GOOD, 0.98, 0.98, p99=600, p99_before=20)],
            {},
            1,
            Verdict.PROMOTE,
            "not counted: only 580 µs apart",
        ),
        (
            [_trial("a", GOOD, 0.98, 0.98), Trial(DeviceId("b"), Outcome.REMOVED)],
            {},
            1,
            Verdict.PROMOTE,
            "1 of 1 device committed",
        ),
    ],
)
def test_the_gate(trials: list[Trial], gate: dict[str, float], waited_s: float, verdict: Verdict, words: str) -> None:
    """Each rule of the gate, with the words that an operator reads."""
    judgement = judge(REF, trials, GateConfig.model_validate(gate), waited_s)

    assert judgement.verdict is verdict, judgement.reason
    assert words in judgement.reason


_trials = st.lists(
    st.builds(
        _trial,
        st.text("abc", min_size=1, max_size=5),
        st.sampled_from([GOOD, BAD, OPEN]),
        st.none() | st.floats(0, 1),
        st.none() | st.floats(0, 1),
    ),
    min_size=1,
    max_size=30,
)


@given(trials=_trials, ratio=st.floats(0, 1), drop=st.floats(0, 1), waited_s=st.floats(0, 200))
def test_the_gate_never_promotes_above_its_thresholds(
    trials: list[Trial], ratio: float, drop: float, waited_s: float
) -> None:
    """Promotion means: enough succeeded, none is waited for in time, and the mean paired drop is allowed."""
    gate = GateConfig(min_success_ratio=ratio, max_accuracy_drop=drop, timeout_s=100)
    judgement = judge(REF, trials, gate, waited_s)
    succeeded = [trial for trial in trials if trial.outcome is GOOD]

    assert judgement.reason
    if judgement.verdict is Verdict.PROMOTE:
        assert len(succeeded) >= ratio * len(trials) - 1e-6
        assert waited_s >= 100 or all(trial.outcome is not OPEN for trial in trials)
        drops = [trial.accuracy_drop for trial in succeeded if trial.accuracy_drop is not None]
        assert not drops or sum(drops) / len(drops) <= drop + 1e-6
    if judgement.verdict is Verdict.WAIT:
        assert waited_s < 100


@given(count=st.integers(1, 1000), ratio=st.floats(0, 1))
def test_allowed_failures_keep_the_success_ratio(count: int, ratio: float) -> None:
    """One more failure than allowed would break the ratio, one less keeps it."""
    allowed = allowed_failures(count, ratio)

    assert 0 <= allowed <= count
    assert (count - allowed) / count >= ratio - 1e-6


@pytest.mark.parametrize("state", InstallState)
def test_only_reports_of_this_rollout_and_version_count(state: InstallState) -> None:
    """The way back that a device took by itself is a failure; anything about another rollout is nothing."""
    report = ModelReport(name=REF.name, version=2, state=state, rollout="r1")
    expected = {
        InstallState.COMMITTED: GOOD,
        InstallState.ROLLED_BACK: BAD,
        InstallState.FAILED: BAD,
    }

    assert outcome_of(report, "r1", REF) is expected.get(state, OPEN)
    assert outcome_of(report, "r2", REF) is None
    assert outcome_of(report, "r1", ModelRef(REF.name, 3)) is None
    assert outcome_of(report.model_copy(update={"rollout": None}), "r1", REF) is None


def _rollout(*outcomes: Outcome, on_failure: str = "roll_back") -> Rollout:
    """Return a rollout with one device a wave."""
    waves = tuple(
        Wave(number, WaveState.PENDING, (Trial(DeviceId(f"d{number}"), outcome),))
        for number, outcome in enumerate(outcomes, start=1)
    )
    gate = GateConfig.model_validate({"on_failure": on_failure, "timeout_s": 100})
    return Rollout("r1", REF, RolloutState.RUNNING, gate, waves)


def _run(rollout: Rollout, now: float = 0.0) -> tuple[Rollout, list[tuple[EffectKind, DeviceId]]]:
    effects: list[tuple[EffectKind, DeviceId]] = []
    while (change := advance(rollout, now)) is not None:
        rollout = change.rollout
        effects += [(effect.kind, device) for effect in change.effects for device in effect.devices]
    return rollout, effects


def test_a_good_version_reaches_every_wave_in_order() -> None:
    """Each wave starts after the one before is promoted."""
    rollout, effects = _run(_rollout(GOOD, GOOD, GOOD))

    assert rollout.state is RolloutState.COMPLETED
    assert effects == [(EffectKind.ASSIGN, f"d{number}") for number in (1, 2, 3)]


def test_a_bad_version_goes_back_on_all_that_tried_it() -> None:
    """The failed wave and those before; the last wave never hears of it."""
    rollout, effects = _run(_rollout(GOOD, BAD, GOOD))

    assert rollout.state is RolloutState.ROLLED_BACK
    assert [wave.state for wave in rollout.waves] == [WaveState.PROMOTED, WaveState.FAILED, WaveState.PENDING]
    assert effects[-2:] == [(EffectKind.RESTORE, "d1"), (EffectKind.RESTORE, "d2")]
    assert rollout.reason == "1 of 1 device failed, at most 0 may: d2"


def test_a_held_rollout_goes_on_when_the_operator_promotes_it() -> None:
    """Nothing moves while it is held; promote passes the failed wave and the next one starts."""
    held, effects = _run(_rollout(BAD, OPEN, on_failure="hold"))
    assert (held.state, effects) == (RolloutState.HELD, [(EffectKind.ASSIGN, "d1")])
    assert advance(held, 1e9) is None

    resumed, effects = _run(promote(held, 1).rollout, 1)

    assert resumed.state is RolloutState.RUNNING
    assert effects == [(EffectKind.ASSIGN, "d2")]


@pytest.mark.parametrize("state", RolloutState)
def test_an_abort_sends_back_whatever_was_reached_and_only_once(state: RolloutState) -> None:
    """A rollout that is over can be neither aborted nor promoted."""
    running, _ = _run(_rollout(GOOD, OPEN, OPEN))
    if state in OVER:
        for decide in (abort, promote):
            with pytest.raises(Rejected, match=str(state)):
                decide(Rollout("r1", REF, state, GateConfig(), running.waves), 5)
        return
    change = abort(running, 5)

    assert change.rollout.state is RolloutState.ABORTED
    assert change.rollout.finished_at == 5
    assert [(effect.kind, effect.devices) for effect in change.effects] == [(EffectKind.RESTORE, ("d1", "d2"))]


def test_a_wave_that_is_not_decided_in_time_fails() -> None:
    """Time alone moves a rollout."""
    running, _ = _run(_rollout(OPEN), now=10)
    assert advance(running, 109) is None

    change = advance(running, 110)

    assert change is not None
    assert change.rollout.state is RolloutState.ROLLED_BACK
    assert "after 100 s 0 of 1 device succeeded" in change.text


def test_a_wave_whose_devices_were_all_revoked() -> None:
    """The first one proves nothing and fails; a later one stands on those before."""
    assert _run(_rollout(Outcome.REMOVED, GOOD))[0].state is RolloutState.ROLLED_BACK
    assert _run(_rollout(GOOD, Outcome.REMOVED))[0].state is RolloutState.COMPLETED
