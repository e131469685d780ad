"""The gate of a wave: promote, wait or fail, by what its devices measured. Pure.

Rules, in this order:
1. A wave fails as soon as more devices failed than the success ratio allows.
2. It waits while a device is undecided, until the time is up; then the undecided count as not succeeded. The time of
   devices that wait for an update window begins when that opens.
3. Devices that were revoked are not counted.
4. The devices that succeeded are compared, each with itself, to the version it ran before: the mean loss of
   accuracy and the median ratio of p99 latencies must be within the gate.
A comparison without figures on both sides is not applicable; the verdict's words say so. Nothing is promoted while
failures are above the threshold.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from regatta_fleet.schemas import GateConfig
from regatta_protocol.enums import StrEnum
from regatta_protocol.ids import DeviceId, ModelRef
from regatta_protocol.update_window import LONGEST_WAIT_S

__all__ = [
    "P99_NOISE_US",
    "Baseline",
    "Judgement",
    "Outcome",
    "Trial",
    "Verdict",
    "allowed_failures",
    "judge",
    "waiting_for_window",
    "window_s",
    "window_words",
]

_ROUNDING = 1e-9
_NAMED_DEVICES = 3  # a reason names at most so many devices
P99_NOISE_US = 1000.0
"""p99 latencies less than this apart are not compared: one preemption by another process costs that much, and a
model of some 20 us would otherwise fail its gate by chance on a busy board."""


class Outcome(StrEnum):
    """How a version fares on one device."""

    PENDING = "pending"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    REMOVED = "removed"  # the device was revoked: it says nothing about the version


class Verdict(StrEnum):
    PROMOTE = "promote"
    WAIT = "wait"
    FAIL = "fail"


@dataclass(frozen=True)
class Baseline:
    """What a device had on the version before, or, where it measured nothing, what the manifest of that says."""

    version: int
    accuracy: float | None = None  # in [0, 1]
    p99_us: float | None = None
    source: Literal["device", "manifest"] = "device"


@dataclass(frozen=True)
class Trial:
    """One device in a wave."""

    device: DeviceId
    outcome: Outcome = Outcome.PENDING
    reason: str | None = None  # the device's words
    accuracy: float | None = None  # in [0, 1], of the new version on this device
    p99_us: float | None = None
    baseline: Baseline | None = None
    opens_at: float | None = None  # seconds since 1970: the last update window that it waited for
    waits: bool = False  # for that, as last reported

    @property
    def accuracy_drop(self) -> float | None:
        """How much accuracy the new version loses on this device; None when one side is unknown."""
        if self.accuracy is None or self.baseline is None or self.baseline.accuracy is None:
            return None
        return self.baseline.accuracy - self.accuracy


@dataclass(frozen=True)
class Judgement:
    verdict: Verdict
    reason: str  # plain words


def allowed_failures(devices: int, min_success_ratio: float) -> int:
    """Return how many of `devices` may fail."""
    return devices - math.ceil(devices * min_success_ratio - _ROUNDING)


def judge(
    ref: ModelRef, trials: Sequence[Trial], gate: GateConfig, waited_s: float, windows_s: float = 0.0
) -> Judgement:
    """Return what becomes of a wave whose devices stand as `trials` say, `waited_s` seconds after its start.

    `windows_s` of that time do not count, as `window_s` says.
    """
    trials = [trial for trial in trials if trial.outcome is not Outcome.REMOVED]
    failed = [trial for trial in trials if trial.outcome is Outcome.FAILED]
    succeeded = [trial for trial in trials if trial.outcome is Outcome.SUCCEEDED]
    pending = [trial for trial in trials if trial.outcome is Outcome.PENDING]
    allowed = allowed_failures(len(trials), gate.min_success_ratio)
    if len(failed) > allowed:
        return Judgement(Verdict.FAIL, _failure_words(ref, trials, failed, gate, allowed))
    if pending and waited_s < windows_s + gate.timeout_s:
        return Judgement(Verdict.WAIT, f"waiting for {_names(pending)} of {_devices(len(trials))}")
    if len(failed) + len(pending) > allowed:
        return Judgement(
            Verdict.FAIL,
            f"after {waited_s:.0f} s {len(succeeded)} of {_devices(len(trials))} succeeded, "
            f"at least {len(trials) - allowed} must; undecided: {_names(pending, with_reasons=True)}",
        )
    accuracy = _judge_accuracy(ref, succeeded, gate)
    latency = _judge_latency(ref, succeeded, gate)
    broken = [judgement.reason for judgement in (accuracy, latency) if judgement.verdict is Verdict.FAIL]
    if broken:
        return Judgement(Verdict.FAIL, "; ".join(broken))
    counted = f"{len(succeeded)} of {_devices(len(trials))} committed {ref}"
    return Judgement(Verdict.PROMOTE, "; ".join((counted, accuracy.reason, latency.reason)))


def window_s(trials: Sequence[Trial], started_at: float) -> float:
    """Return how long after the start of its wave the last update window of an undecided device opens.

    It is LONGEST_WAIT_S at most: a device whose clock is years ahead holds no wave up for years.
    """
    opens = [one.opens_at for one in trials if one.outcome is Outcome.PENDING and one.opens_at is not None]
    return min(max(0.0, max(opens, default=0.0) - started_at), LONGEST_WAIT_S)


def waiting_for_window(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """Return the undecided devices that wait for an update window."""
    return tuple(one for one in trials if one.outcome is Outcome.PENDING and one.waits)


def window_words(trials: Sequence[Trial]) -> str | None:
    """Return which devices wait for an update window, and until when; None when none does."""
    waiting = waiting_for_window(trials)
    if not waiting:
        return None
    return f"{len(waiting)} of {_devices(len(trials))} in no update window yet: {_names(waiting, with_reasons=True)}"


def _judge_accuracy(ref: ModelRef, succeeded: Sequence[Trial], gate: GateConfig) -> Judgement:
    compared = [trial for trial in succeeded if trial.accuracy_drop is not None]
    if not compared:
        measured = [trial.accuracy for trial in succeeded if trial.accuracy is not None]
        if measured:
            return Judgement(
                Verdict.PROMOTE, f"accuracy {statistics.fmean(measured):.2f}; no version before it to compare with"
            )
        return Judgement(Verdict.PROMOTE, "accuracy not applicable: no device measured it")
    drop = _mean_drop(compared)
    words = _accuracy_words(ref, compared, len(succeeded), gate)
    return Judgement(Verdict.FAIL if drop > gate.max_accuracy_drop + _ROUNDING else Verdict.PROMOTE, words)


def _judge_latency(ref: ModelRef, succeeded: Sequence[Trial], gate: GateConfig) -> Judgement:
    pairs = [
        (trial.p99_us, trial.baseline.p99_us)
        for trial in succeeded
        if trial.p99_us is not None and trial.baseline is not None and trial.baseline.p99_us
    ]
    if not pairs:
        return Judgement(Verdict.PROMOTE, "p99 not applicable: nothing measured before")
    ratio = statistics.median(new / old for new, old in pairs)
    apart_us = statistics.median(new - old for new, old in pairs)
    words = f"p99 latency is {ratio:.2f} times that before; allowed {gate.max_p99_ratio:g}"
    if ratio <= gate.max_p99_ratio + _ROUNDING:
        return Judgement(Verdict.PROMOTE, words)
    if apart_us < P99_NOISE_US:
        return Judgement(Verdict.PROMOTE, f"{words}, not counted: only {apart_us:.0f} µs apart")
    return Judgement(Verdict.FAIL, f"{len(pairs)} of {_devices(len(succeeded))} measured: {words}")


def _failure_words(
    ref: ModelRef, trials: Sequence[Trial], failed: Sequence[Trial], gate: GateConfig, allowed: int
) -> str:
    inaccurate = [trial for trial in failed if (trial.accuracy_drop or 0) > gate.max_accuracy_drop + _ROUNDING]
    if len(inaccurate) > allowed:
        return _accuracy_words(ref, inaccurate, len(trials), gate)
    return (
        f"{len(failed)} of {_devices(len(trials))} failed, at most {allowed} may: {_names(failed, with_reasons=True)}"
    )


def _accuracy_words(ref: ModelRef, compared: Sequence[Trial], total: int, gate: GateConfig) -> str:
    measured = statistics.fmean(trial.accuracy for trial in compared if trial.accuracy is not None)
    baselines = [trial.baseline for trial in compared if trial.baseline is not None]
    before = statistics.fmean(line.accuracy for line in baselines if line.accuracy is not None)
    versions = ", ".join(f"{ref.name}:{version}" for version in sorted({line.version for line in baselines}))
    drop = _mean_drop(compared)
    direction = f"{_points(drop)} below" if drop >= 0 else f"{_points(-drop)} above"
    return (
        f"{len(compared)} of {_devices(total)} measured accuracy {measured:.2f}, {direction} {versions} "
        f"({before:.2f}); allowed {_number(gate.max_accuracy_drop * 100)}"
    )


def _mean_drop(compared: Sequence[Trial]) -> float:
    return statistics.fmean(trial.accuracy_drop for trial in compared if trial.accuracy_drop is not None)


def _points(share: float) -> str:
    text = _number(share * 100)
    return f"{text} point" if text == "1" else f"{text} points"


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _devices(count: int) -> str:
    return f"{count} device" if count == 1 else f"{count} devices"


def _names(trials: Sequence[Trial], *, with_reasons: bool = False) -> str:
    shown = [
        f"{trial.device} ({trial.reason})" if with_reasons and trial.reason else trial.device
        for trial in trials[:_NAMED_DEVICES]
    ]
    more = len(trials) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
