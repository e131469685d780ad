"""The verdict on a new version: does it keep its accuracy, stay alive, and answer without errors?

Pure. A version that loses too much accuracy in its race is refused before it answers a single request.
"""

from __future__ import annotations

from dataclasses import dataclass

from regatta_agent.core.facts import ShadowFacts, WorkerFacts
from regatta_agent.core.installs import Install

__all__ = ["Verdict", "judge_accuracy", "judge_shadow", "judge_trial"]

_MIN_TRIAL_REQUESTS = 20  # below that, a share of errors says little
_MAX_TRIAL_ERROR_SHARE = 0.5


@dataclass(frozen=True)
class Verdict:
    """`passed` is None while nothing can be said yet."""

    passed: bool | None
    reason: str


def judge_accuracy(install: Install, replaced: Install | None) -> Verdict:
    """Return whether `install` may take the place of `replaced`, by what the races on this board measured.

    A version that passed its trial here before is not judged again: it is wanted back for a reason of its own.
    """
    if install.committed_at is not None:
        return Verdict(True, "it served here before")
    if replaced is None:
        return Verdict(True, "there is no version to compare with")
    new = install.race.accuracy if install.race is not None else None
    old = replaced.race.accuracy if replaced.race is not None else None
    if new is None or old is None or install.race is None:
        return Verdict(True, "no labelled evaluation set to compare on")
    drop, allowed = old.value - new.value, install.race.max_trial_accuracy_drop
    if drop <= allowed:
        return Verdict(True, f"accuracy {new.value:.2f} beside {replaced.ref}'s {old.value:.2f}")
    return Verdict(
        False,
        f"accuracy {new.value:.2f} is {_points(drop)} points below {replaced.ref}'s {old.value:.2f}; "
        f"allowed {_points(allowed)}",
    )


def judge_shadow(
    install: Install, worker: WorkerFacts, replaced: Install | None, serving: WorkerFacts | None
) -> Verdict:
    """Return whether `install` has been in the shadow of what serves for long enough, and how they compared there.

    What is found is told and stops nothing: a better version answers otherwise too. A version that served here before
    is wanted back now, and one that replaces nothing has nothing to be compared with.
    """
    shadow_s = install.race.shadow_s if install.race is not None else 0.0
    if shadow_s == 0.0 or install.committed_at is not None or replaced is None:
        return Verdict(True, "")
    if worker.ready_for_s < shadow_s:
        return Verdict(None, f"in the shadow of {replaced.ref} for {shadow_s:g} s")
    found = serving.shadow if serving is not None else None
    if found is not None and found.socket != worker.socket:  # of a worker of this version before this one
        found = None
    return Verdict(True, f"in the shadow of {replaced.ref} it {_compared(found)}")


def _compared(shadow: ShadowFacts | None) -> str:
    if shadow is None:
        return "was shown no live request"
    parts = []
    if shadow.classified:
        parts.append(f"agreed on {100 * shadow.agreed / shadow.classified:.1f} % of {shadow.classified} live requests")
    if shadow.snr_db is not None:
        parts.append(f"answered like it to an SNR of {shadow.snr_db:.1f} dB")
    elif shadow.requests > shadow.classified + shadow.failed:
        parts.append(f"answered {shadow.requests - shadow.classified - shadow.failed} live requests equally")
    if shadow.failed:
        parts.append(f"failed {shadow.failed} of {shadow.requests}")
    return ", ".join(parts)


def judge_trial(install: Install, worker: WorkerFacts, replaced: Install | None) -> Verdict:
    """Return whether the trial is over, and how.

    A version whose winner does not get through its trial goes back, unless the one that it replaces is no better off:
    then the board is at fault.
    """
    if install.degraded is not None and replaced is not None and replaced.degraded is None:
        return Verdict(False, f"{install.winner} failed on trial: {install.degraded.reason}")
    if worker.requests >= _MIN_TRIAL_REQUESTS and worker.errors > _MAX_TRIAL_ERROR_SHARE * worker.requests:
        return Verdict(False, f"{worker.errors} of {worker.requests} requests failed on trial")
    if worker.ready and worker.ready_for_s >= install.tried_after_s:
        return Verdict(True, f"served {install.trial_s:g} s on trial")
    told = f"; {install.agreement}" if install.agreement else ""
    return Verdict(None, f"on trial for {install.trial_s:g} s{told}")


def _points(share: float) -> str:
    return f"{share * 100:.1f}".removesuffix(".0")
