"""A rollout and its waves: two tables of transitions, and what to do next. Pure.

Rule 1: a wave starts only when every wave before it is promoted.
Rule 2: a wave's end and what it means for the rollout are one change, stored in one transaction.
Rule 3: what the gate refuses goes back (the failed wave and all before it) or is held, as the request said.
Rule 4: an abort sends every device that the rollout reached back to what it ran before, promoted waves too.
Rule 5: an operator's promote passes the current wave without its gate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from regatta_fleet.core.gates import Judgement, Outcome, Trial, Verdict, judge, window_s
from regatta_fleet.schemas import GateConfig, RolloutState, WaveState
from regatta_protocol.enums import StrEnum
from regatta_protocol.errors import Rejected
from regatta_protocol.ids import DeviceId, ModelRef
from regatta_protocol.messages import InstallState, ModelReport

__all__ = [
    "ROLLOUT_TABLE",
    "WAVE_TABLE",
    "Change",
    "Decide",
    "Effect",
    "EffectKind",
    "Rollout",
    "RolloutEvent",
    "Wave",
    "WaveEvent",
    "abort",
    "advance",
    "next_rollout_state",
    "next_wave_state",
    "outcome_of",
    "promote",
]


class RolloutEvent(StrEnum):
    WAVE_PROMOTED = "wave_promoted"  # and another one follows
    LAST_WAVE_PROMOTED = "last_wave_promoted"
    GATE_FAILED_HOLD = "gate_failed_hold"
    GATE_FAILED_ROLL_BACK = "gate_failed_roll_back"
    ABORT = "abort"


class WaveEvent(StrEnum):
    START = "start"
    PASS = "pass"  # noqa: S105  # a gate's verdict, no password
    FAIL = "fail"
    FORCE = "force"  # the operator passes it
    CANCEL = "cancel"


ROLLOUT_TABLE: dict[tuple[RolloutState, RolloutEvent], RolloutState] = {
    (RolloutState.RUNNING, RolloutEvent.WAVE_PROMOTED): RolloutState.RUNNING,
    (RolloutState.RUNNING, RolloutEvent.LAST_WAVE_PROMOTED): RolloutState.COMPLETED,
    (RolloutState.RUNNING, RolloutEvent.GATE_FAILED_HOLD): RolloutState.HELD,
    (RolloutState.RUNNING, RolloutEvent.GATE_FAILED_ROLL_BACK): RolloutState.ROLLED_BACK,
    (RolloutState.RUNNING, RolloutEvent.ABORT): RolloutState.ABORTED,
    (RolloutState.HELD, RolloutEvent.WAVE_PROMOTED): RolloutState.RUNNING,
    (RolloutState.HELD, RolloutEvent.LAST_WAVE_PROMOTED): RolloutState.COMPLETED,
    (RolloutState.HELD, RolloutEvent.ABORT): RolloutState.ABORTED,
}

WAVE_TABLE: dict[tuple[WaveState, WaveEvent], WaveState] = {
    (WaveState.PENDING, WaveEvent.START): WaveState.OBSERVING,
    (WaveState.OBSERVING, WaveEvent.PASS): WaveState.PROMOTED,
    (WaveState.OBSERVING, WaveEvent.FAIL): WaveState.FAILED,
    (WaveState.OBSERVING, WaveEvent.FORCE): WaveState.PROMOTED,
    (WaveState.OBSERVING, WaveEvent.CANCEL): WaveState.FAILED,
    (WaveState.FAILED, WaveEvent.FORCE): WaveState.PROMOTED,
    (WaveState.FAILED, WaveEvent.CANCEL): WaveState.FAILED,
}


@dataclass(frozen=True)
class Wave:
    number: int  # from 1
    state: WaveState
    trials: tuple[Trial, ...]
    started_at: float | None = None  # seconds since 1970; None while pending
    reason: str | None = None

    @property
    def devices(self) -> tuple[DeviceId, ...]:
        return tuple(trial.device for trial in self.trials)


@dataclass(frozen=True)
class Rollout:
    id: str
    ref: ModelRef
    state: RolloutState
    gate: GateConfig
    waves: tuple[Wave, ...]
    reason: str | None = None
    finished_at: float | None = None

    @property
    def current(self) -> Wave | None:
        """The first wave that is not promoted."""
        return next((wave for wave in self.waves if wave.state is not WaveState.PROMOTED), None)


class EffectKind(StrEnum):
    ASSIGN = "assign"  # give these devices the rollout's version
    RESTORE = "restore"  # give them back what they had before


@dataclass(frozen=True)
class Effect:
    kind: EffectKind
    devices: tuple[DeviceId, ...]


@dataclass(frozen=True)
class Change:
    """A rollout after a transition, what it asks for, and the line for the fleet's history."""

    rollout: Rollout
    effects: tuple[Effect, ...]
    text: str


Decide = Callable[[Rollout, float], Change]
"""An operator's decision at a time: `promote` or `abort`."""


def next_rollout_state(state: RolloutState, event: RolloutEvent) -> RolloutState:
    """Return the state after `event`.

    Raises:
        Rejected: when the table has no such pair.
    """
    try:
        return ROLLOUT_TABLE[state, event]
    except KeyError:
        raise Rejected(f"a rollout that is {state} knows no {event}") from None


def next_wave_state(state: WaveState, event: WaveEvent) -> WaveState:
    """Return the state after `event`.

    Raises:
        Rejected: when the table has no such pair.
    """
    try:
        return WAVE_TABLE[state, event]
    except KeyError:
        raise Rejected(f"a wave that is {state} knows no {event}") from None


def outcome_of(report: ModelReport, rollout: str, ref: ModelRef) -> Outcome | None:
    """Return what a device's report says of a rollout, or None when it is about something else.

    A device that went back by itself counts as failed.
    """
    if report.rollout != rollout or (report.name, report.version) != ref:
        return None
    if report.state is InstallState.COMMITTED:
        return Outcome.SUCCEEDED
    if report.state in (InstallState.ROLLED_BACK, InstallState.FAILED):
        return Outcome.FAILED
    return Outcome.PENDING


def advance(rollout: Rollout, now: float) -> Change | None:
    """Return the next change of a rollout, or None while there is nothing to do but wait."""
    wave = rollout.current
    if rollout.state is not RolloutState.RUNNING or wave is None:
        return None
    if wave.state is WaveState.PENDING:
        return _start(rollout, wave, now)
    judgement = _judge(rollout, wave, now)
    if judgement.verdict is Verdict.PROMOTE:
        return _pass(rollout, wave, WaveEvent.PASS, judgement.reason, now)
    if judgement.verdict is Verdict.FAIL:
        return _fail(rollout, wave, judgement, now)
    return None


def promote(rollout: Rollout, now: float) -> Change:
    """Return the change that passes the current wave without its gate.

    Raises:
        Rejected: when the rollout is over, or its wave has not started.
    """
    wave = rollout.current
    if wave is None or rollout.state not in (RolloutState.RUNNING, RolloutState.HELD):
        raise Rejected(f"rollout {rollout.id} is {rollout.state}: there is nothing to promote")
    return _pass(rollout, wave, WaveEvent.FORCE, "promoted by the operator", now)


def abort(rollout: Rollout, now: float) -> Change:
    """Return the change that ends the rollout and sends every device that it reached back.

    Raises:
        Rejected: when the rollout is over already.
    """
    if rollout.state not in (RolloutState.RUNNING, RolloutState.HELD):
        raise Rejected(f"rollout {rollout.id} is {rollout.state} already: there is nothing to abort")
    state = next_rollout_state(rollout.state, RolloutEvent.ABORT)
    ended = replace(rollout, state=state, reason="aborted by the operator", finished_at=now)
    wave = rollout.current
    if wave is not None and wave.state is not WaveState.PENDING:
        cancelled = next_wave_state(wave.state, WaveEvent.CANCEL)
        ended = _with_wave(ended, replace(wave, state=cancelled, reason=wave.reason or "aborted by the operator"))
    reached = tuple(d for each in rollout.waves if each.state is not WaveState.PENDING for d in each.devices)
    effects = (Effect(EffectKind.RESTORE, reached),) if reached else ()
    return Change(ended, effects, f"rollout of {rollout.ref} aborted by the operator")


def _judge(rollout: Rollout, wave: Wave, now: float) -> Judgement:
    if all(trial.outcome is Outcome.REMOVED for trial in wave.trials):
        if wave.number == 1:
            return Judgement(Verdict.FAIL, "every device of the first wave was revoked: nothing was measured")
        return Judgement(Verdict.PROMOTE, "every device of this wave was revoked")
    started_at = now if wave.started_at is None else wave.started_at
    return judge(rollout.ref, wave.trials, rollout.gate, now - started_at, window_s(wave.trials, started_at))


def _start(rollout: Rollout, wave: Wave, now: float) -> Change:
    started = replace(wave, state=next_wave_state(wave.state, WaveEvent.START), started_at=now)
    text = f"{rollout.ref}: wave {wave.number} of {len(rollout.waves)} starts: {', '.join(wave.devices[:5])}"
    if len(wave.devices) > 5:
        text += f" and {len(wave.devices) - 5} more"
    return Change(_with_wave(rollout, started), (Effect(EffectKind.ASSIGN, wave.devices),), text)


def _pass(rollout: Rollout, wave: Wave, event: WaveEvent, reason: str, now: float) -> Change:
    passed = replace(wave, state=next_wave_state(wave.state, event), reason=reason)
    last = wave.number == len(rollout.waves)
    state = next_rollout_state(rollout.state, RolloutEvent.LAST_WAVE_PROMOTED if last else RolloutEvent.WAVE_PROMOTED)
    after = replace(rollout, state=state, reason=reason if last else None, finished_at=now if last else None)
    text = f"{rollout.ref}: wave {wave.number} of {len(rollout.waves)} promoted: {reason}"
    return Change(_with_wave(after, passed), (), text)


def _fail(rollout: Rollout, wave: Wave, judgement: Judgement, now: float) -> Change:
    failed = replace(wave, state=next_wave_state(wave.state, WaveEvent.FAIL), reason=judgement.reason)
    back = rollout.gate.on_failure == "roll_back"
    event = RolloutEvent.GATE_FAILED_ROLL_BACK if back else RolloutEvent.GATE_FAILED_HOLD
    after = replace(
        rollout,
        state=next_rollout_state(rollout.state, event),
        reason=judgement.reason,
        finished_at=now if back else None,
    )
    tried = tuple(device for each in rollout.waves[: wave.number] for device in each.devices)
    effects = (Effect(EffectKind.RESTORE, tried),) if back else ()
    what = "rolled back" if back else "held"
    text = f"{rollout.ref}: wave {wave.number} of {len(rollout.waves)} failed, {what}: {judgement.reason}"
    return Change(_with_wave(after, failed), effects, text)


def _with_wave(rollout: Rollout, wave: Wave) -> Rollout:
    waves = tuple(wave if each.number == wave.number else each for each in rollout.waves)
    return replace(rollout, waves=waves)
