"""A race and a fleet put into words: who won, why each other candidate lost, which device serves what.

Pure. The command line and the page say the same, because both ask here.
"""

from __future__ import annotations

from regatta_fleet import figures
from regatta_fleet.schemas import DeviceModel, DeviceSummary, RolloutDetail, WaveState
from regatta_protocol.measurement import CandidateResult, Outcome, RaceReport
from regatta_runtimes.choice.report import words_of

__all__ = [
    "candidate_verdict",
    "current_wave",
    "front",
    "progress",
    "race_took",
    "raced",
    "shown_models",
    "up_since",
]


def candidate_verdict(result: CandidateResult, report: RaceReport) -> str:
    """Return why the candidate won or lost, in one phrase."""
    reason = figures.one_line(result.reason)
    if result.id == report.placement:
        return "placed"
    if result.outcome == Outcome.DROPPED and result.latency is None and reason:
        return reason  # not tried, and why
    if result.outcome != Outcome.MEASURED:
        words = words_of(result.outcome)
        return f"{words}: {reason}" if reason else words
    if reason:
        return reason
    winner = report.placed()
    figure = "p99_us" if report.objective == "latency_p99" else "p50_us"
    if winner is None or winner.latency is None or result.latency is None:
        return "not chosen"
    ours, best = getattr(result.latency, figure), getattr(winner.latency, figure)
    if not best or ours < best:
        return "not chosen: the policy prefers the placed one"
    return f"{figures.ratio(ours / best)} the placed one's {figure[:3]}"


def front(report: RaceReport) -> tuple[str, ...]:
    """Return the Pareto front in words, when there is another choice than the placed one."""
    others = [name for name in report.pareto if name != report.placement]
    return (f"no other is better in every respect than {', '.join(others)}",) if others else ()


def race_took(report: RaceReport) -> str:
    """Return how long the race took, and whose it confirmed if it was not run in full."""
    took = f"{report.duration_s:.1f} s"
    return took if report.prior is None else f"{took}, confirming the race of {figures.one_line(report.prior.device)}"


def raced(report: RaceReport) -> str:
    """Return in one line what a race came to."""
    placed = f"placed {figures.one_line(report.placement, 200)}" if report.placement else "placed nothing"
    return f"{figures.one_line(report.model, 64)}:{report.version} {placed} ({race_took(report)})"


def shown_models(device: DeviceSummary) -> tuple[DeviceModel, ...]:
    """Return what a fleet table shows of a device: what serves, and what is on its way or failed, newest first."""
    newest: dict[str, int] = {}
    for model in device.models:
        newest[model.name] = max(newest.get(model.name, 0), model.version)
    shown = [model for model in device.models if model.serving or model.version == newest[model.name]]
    return tuple(sorted(shown, key=lambda model: (model.name, not model.serving, -model.version)))


def progress(rollout: RolloutDetail) -> tuple[int, int]:
    """Return how many devices of the rollout succeeded, and how many it is for."""
    return sum(wave.succeeded for wave in rollout.waves), len({d for wave in rollout.waves for d in wave.devices})


def up_since(device: DeviceSummary, now: float) -> str:
    """Return `up`, `revoked`, `down, 3 min ago` or `never seen`."""
    if device.revoked:
        return "revoked"
    if device.up:
        return "up"
    return "never seen" if device.last_seen is None else f"down, {figures.age(device.last_seen, now)}"


def current_wave(rollout: RolloutDetail) -> int:
    """Return the number of the wave that is being observed, failed, or was last promoted; 0 before the first."""
    begun = [wave.number for wave in rollout.waves if wave.state != WaveState.PENDING]
    return max(begun, default=0)
