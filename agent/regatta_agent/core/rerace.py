"""When a committed version is raced again, and what comes of it. Pure.

The running placement is not touched by a race: its successor takes over only when it did clearly better in the same
race, so that both were measured alike, and when its worker is ready. What the new race could not measure, because the
serving worker holds the accelerator, is no reason to leave it. An interval on disk bounds how often this may happen.
"""

from __future__ import annotations

from collections.abc import Mapping

from regatta_agent.core.facts import Facts, Limits
from regatta_agent.core.installs import AgentRecord, Install, RaceSummary
from regatta_agent.core.standbys import distrusted
from regatta_protocol.errors import RegattaError
from regatta_protocol.ids import ModelRef
from regatta_protocol.measurement import Outcome, RaceReport
from regatta_protocol.policy import Policy
from regatta_runtimes.choice.objective import cost

__all__ = ["drifted", "rerace_failed", "rerace_reason", "reraced", "successor_died", "why_stays"]

_CLEARLY = 0.8  # of the cost of what serves; on a busy board two races differ by up to 10 %
_POLICY_CHANGED = "its policy was changed"
_SOUND = (Outcome.MEASURED, Outcome.DROPPED)
_UNSOUND = (Outcome.WRONG_OUTPUT, Outcome.INACCURATE)


def rerace_reason(install: Install, facts: Facts, limits: Limits) -> str | None:
    """Return why a new race is due now, or None."""
    race = install.race
    if race is None or install.successor is not None:
        return None
    if install.outdated:
        tried = install.reraced_at if install.rerace == _POLICY_CHANGED else None  # and came to nothing
        waits = tried is not None and tried <= facts.now_s < tried + limits.rerace_interval_s
        return None if waits else _POLICY_CHANGED
    if install.degraded is not None:
        return None
    races = [time for time in (race.at, install.reraced_at) if time is not None and time <= facts.now_s]
    if races and facts.now_s < max(races) + limits.rerace_interval_s:
        return None
    return install.rerace or _changed(race.versions, facts.versions)


def _changed(before: Mapping[str, str], now: Mapping[str, str]) -> str | None:
    """Return in words which version is another than at the race; None also when nothing was noted then."""
    if not before or not now:
        return None
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            return f"{name} was {before.get(name, 'absent')} in the race and is {now.get(name, 'absent')}"
    return None


def drifted(record: AgentRecord, ref: ModelRef, placement: str, expected_us: float, found_us: float) -> AgentRecord:
    """Return the record after a worker found its placement slower than in its race, time after time."""
    install = record.find(ref)
    if install is None or install.placement != placement or install.rerace is not None:
        return record
    return record.changed(ref, rerace=f"{placement} takes {found_us:.0f} us and took {expected_us:.0f} us in its race")


def why_stays(report: RaceReport, current: str, *, by_policy: bool = False) -> str | None:
    """Return why the placement stays after a new race, or None when the new winner shall take over.

    Args:
        report: of the new race.
        current: the placement.
        by_policy: another policy chose this time, so that the winner need not be clearly better by it.
    """
    winner = report.placed()
    if winner is None:
        return f"it could place nothing: {report.reason}"
    if winner.id == current:
        return "it won again"
    result = next((one for one in report.candidates if one.id == current), None)
    if result is not None and result.outcome in _UNSOUND:
        return None
    if by_policy and result is not None and result.outcome in _SOUND:
        return None
    ours = cost(result, report.objective) if result is not None and result.outcome in _SOUND else None
    other = cost(winner, report.objective)
    if result is None or ours is None or other is None:
        why = result.reason if result is not None and result.reason else "it was not measured"
        return f"{winner.id} won, but {current} could not be compared with it ({why})"
    if other < _CLEARLY * ours:
        return None
    return f"{winner.id} won, but by less than {1 - _CLEARLY:.0%} of what {current} cost in the same race"


def reraced(
    record: AgentRecord, ref: ModelRef, report: RaceReport, summary: RaceSummary | None, assigned: Policy | None = None
) -> AgentRecord:
    """Return the record after a race beside the serving worker. A policy that places nothing changes only the reason.

    Args:
        record: before.
        ref: the version.
        report: of the new race.
        summary: of it as outcomes.py makes one, or None when nothing was placed.
        assigned: the policy that it was judged by, when the fleet had assigned it.
    """
    install = record.find(ref)
    if install is None or install.race is None or install.placement is None:
        return record
    by_policy = assigned != install.race.policy
    if summary is None and by_policy:
        unmet = f"the policy that was assigned since then places nothing, so {install.placement} stays: {report.reason}"
        race = install.race.model_copy(update={"policy": assigned, "unmet": unmet})
        return record.changed(ref, rerace=None, racing_again=False, race=race)
    if summary is None:
        return record.changed(ref, rerace=None, racing_again=False)
    if why_stays(report, install.placement, by_policy=by_policy) is None:
        return record.changed(ref, rerace=None, racing_again=False, successor=summary)
    kept = next((one for one in report.candidates if one.id == install.placement and one.latency is not None), None)
    ranked = (install.placement, *(one for one in summary.ranked if one != install.placement))
    race = install.race.model_copy(
        update={
            "ranked": ranked,
            "latency": kept.latency if kept is not None else install.race.latency,
            "policy": assigned,
            "unmet": None,
            "max_trial_accuracy_drop": summary.max_trial_accuracy_drop,
            "shadow_s": summary.shadow_s,
            "versions": summary.versions,
            "at": summary.at,
        }
    )
    return record.changed(ref, rerace=None, racing_again=False, race=race)


def rerace_failed(record: AgentRecord, ref: ModelRef, error: RegattaError) -> AgentRecord:
    """Return the record after such a race came to nothing; it is tried again after the interval."""
    install = record.find(ref)
    if install is None or install.race is None or not install.outdated:
        return record.changed(ref, racing_again=False)
    unmet = f"the race for the policy that was assigned since then failed, and is tried again later: {error}"
    return record.changed(ref, racing_again=False, race=install.race.model_copy(update={"unmet": unmet}))


def successor_died(record: AgentRecord, ref: ModelRef, why: str) -> AgentRecord:
    """Return the record after the worker of a better placement ended before it served: what serves goes on."""
    install = record.find(ref)
    if install is None or install.successor is None or install.race is None:
        return record
    placement = install.successor.placement
    if any(one.placement == placement for one in install.given_up):
        reason = f"{placement} was tried again, but its worker ended: {why}"
        degraded = install.degraded.model_copy(update={"reason": reason}) if install.degraded is not None else None
        given_up = distrusted(install.given_up, placement, reason)
        return record.changed(ref, successor=None, given_up=given_up, degraded=degraded)
    reason = f"{placement} won a new race, but its worker ended: {why}"
    policy = install.successor.policy
    unmet = reason if policy != install.race.policy else install.race.unmet
    told = {"versions": install.successor.versions, "at": install.successor.at, "policy": policy, "unmet": unmet}
    race = install.race.model_copy(update=told)
    return record.changed(ref, race=race, successor=None, reason=reason)
