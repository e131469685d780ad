"""Who stands in for a placement, and what a worker is told of it. Pure."""

from __future__ import annotations

from regatta_agent.core.facts import StartWorker
from regatta_agent.core.installs import Install

__all__ = ["next_candidate", "standbys_for", "start_of"]

_MAX_STANDBYS = 4
_ON_THE_PROCESSOR = ("xnnpack", "none")


def standbys_for(install: Install, winner: str) -> tuple[str, ...]:
    """Return the sound candidates that may stand in for `winner`, best first.

    Those on the same accelerator are left out: what ended the winner would end them too, and many accelerators cannot
    be opened twice.
    """
    ranked = install.race.ranked if install.race is not None else ()
    taken = _delegate(winner)
    fit = (one for one in ranked if one != winner and (taken in _ON_THE_PROCESSOR or _delegate(one) != taken))
    return tuple(fit)[:_MAX_STANDBYS]


def next_candidate(install: Install) -> str | None:
    """Return who takes over from a placement that keeps ending its worker; the last one is followed by the first."""
    ranked = install.race.ranked if install.race is not None else ()
    others = [one for one in ranked if one != install.placement]
    if install.placement not in ranked or not others:
        return others[0] if others else None
    return ranked[(ranked.index(install.placement) + 1) % len(ranked)]


def start_of(install: Install, candidate: str) -> StartWorker:
    """Return the step that starts a worker for `candidate`; the winner rests when another than it shall serve."""
    winner = install.winner or candidate
    if winner == candidate:
        return StartWorker(
            install.ref, candidate, winner, standbys_for(install, winner), install.guarded, retried=install.retried
        )
    others = tuple(one for one in standbys_for(install, winner) if one != candidate)
    resting = install.degraded.reason if install.degraded is not None else f"{candidate} was placed in its stead"
    return StartWorker(
        install.ref, candidate, winner, (candidate, *others)[:_MAX_STANDBYS], True, resting, install.retried
    )  # fmt: skip


def _delegate(candidate: str) -> str:
    return candidate.split("/")[2] if candidate.count("/") >= 3 else ""
