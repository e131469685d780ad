"""Who stands in for a placement, and what a worker is told of it. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from regatta_agent.core.facts import StartWorker
from regatta_agent.core.installs import GivenUp, Install

__all__ = ["distrusted", "next_candidate", "safe", "standbys_for", "start_of"]

_MAX_STANDBYS = 4
_ON_THE_PROCESSOR = ("xnnpack", "none")


def standbys_for(install: Install, winner: str) -> tuple[str, ...]:
    """Return the sound candidates that may stand in for `winner`, best first.

    Those on the same accelerator are left out: what ended the winner would end them too, and many accelerators cannot
    be opened twice. So is what was given up, and what is on its accelerator.
    """
    fit = (one for one in safe(install) if one != winner and not _alike(one, winner))
    return tuple(fit)[:_MAX_STANDBYS]


def safe(install: Install) -> tuple[str, ...]:
    """Return the sound candidates, best first, without those that were given up and those on their accelerators."""
    ranked = install.race.ranked if install.race is not None else ()
    bad = [one.placement for one in install.given_up]
    return tuple(one for one in ranked if one not in bad and not any(_alike(one, other) for other in bad))


def next_candidate(install: Install) -> str | None:
    """Return who takes over from a placement that keeps ending its worker; the last one is followed by the first."""
    ranked = safe(install)
    others = [one for one in ranked if one != install.placement]
    if install.placement not in ranked or not others:
        return others[0] if others else None
    return ranked[(ranked.index(install.placement) + 1) % len(ranked)]


def start_of(install: Install, candidate: str) -> StartWorker:
    """Return the step that starts a worker for `candidate`; the winner rests when another than it shall serve."""
    winner = install.winner or candidate
    if winner in [one.placement for one in install.given_up]:
        winner = candidate  # the worker must not open what was given up: neither at rest nor to retry it
    if winner == candidate:
        return StartWorker(
            install.ref, candidate, winner, standbys_for(install, winner), install.guarded, retried=install.retried
        )
    others = tuple(one for one in standbys_for(install, winner) if one != candidate)
    resting = install.degraded.reason if install.degraded is not None else f"{candidate} was placed in its stead"
    return StartWorker(
        install.ref, candidate, winner, (candidate, *others)[:_MAX_STANDBYS], True, resting, install.retried
    )  # fmt: skip


def distrusted(
    given_up: tuple[GivenUp, ...], placement: str, reason: str, versions: Mapping[str, str] | None = None
) -> tuple[GivenUp, ...]:
    """Return what is given up after `placement` was, once more or for the first time.

    Args:
        given_up: before.
        placement: the candidate.
        reason: in words.
        versions: of runtimes, drivers and kernel now; None: those that are noted hold.
    """
    before = next((one for one in given_up if one.placement == placement), None)
    times = 1 if before is None else before.times + 1
    noted = versions if versions is not None or before is None else before.versions
    fresh = GivenUp(placement=placement, reason=reason, times=times, versions=dict(noted or {}))
    return (*(one for one in given_up if one.placement != placement), fresh)


def _alike(one: str, other: str) -> bool:
    """Return whether both compute on the same accelerator; on the processor each stands for itself."""
    return _delegate(one) == _delegate(other) and _delegate(one) not in _ON_THE_PROCESSOR


def _delegate(candidate: str) -> str:
    return candidate.split("/")[2] if candidate.count("/") >= 3 else ""
