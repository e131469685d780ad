"""What becomes of an earlier result at the start of a race: confirmed, or set aside with the reason told.

Joins claim.py (what it says) and confirm.py (the run). Where the result comes from is the caller's business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from regatta_protocol.ids import Digest
from regatta_protocol.measurement import PriorRace, RaceOrigin
from regatta_protocol.policy import Policy
from regatta_runtimes.candidate import Candidate
from regatta_runtimes.choice.claim import claim_of
from regatta_runtimes.choice.judge import Verdict
from regatta_runtimes.choice.yardstick import Yardstick
from regatta_runtimes.power.sensor import PowerSensor, UnknownPower
from regatta_runtimes.race.confirm import Confirmation
from regatta_runtimes.worker.nursery import Nursery
from regatta_runtimes.worker.trial import Trial

__all__ = ["Course", "Reuse", "reuse_prior"]


@dataclass(frozen=True)
class Course:
    """A race that is about to begin."""

    key: Digest
    candidates: Sequence[Candidate]
    make_trials: Callable[[Sequence[Candidate]], list[Trial]]
    nurseries: Mapping[str, Nursery]
    policy: Policy
    yardstick: Yardstick
    sensor: PowerSensor | UnknownPower
    progress: Callable[[str], None]


@dataclass(frozen=True)
class Reuse:
    """`verdict` when an earlier result was confirmed; `doubt`, in words, when there was one and it was set aside."""

    key: Digest | None = None
    origin: RaceOrigin | None = None
    verdict: Verdict | None = None
    doubt: str | None = None


def reuse_prior(course: Course, prior: PriorRace | None) -> Reuse:
    """Return what the prior is worth here, by a confirmation run if it may be worth something."""
    if prior is None:
        return Reuse(course.key)
    trials = course.make_trials(course.candidates)
    shut = {trial.candidate.id for trial in trials if trial.ledger.refuses(trial.pair) is not None}
    lot = Random()  # noqa: S311 - a lot, no secret
    claim = claim_of(prior, course.key, course.candidates, course.policy, course.yardstick.floor, shut, lot)
    if not isinstance(claim, str):
        by_id = {trial.candidate.id: trial for trial in trials}
        tried = [by_id[candidate.id] for candidate in claim.tried]
        run = Confirmation(
            claim, tried, course.nurseries, course.policy, course.yardstick.anew(), course.sensor, course.progress
        )
        verdict = run.run()
        if not isinstance(verdict, str):
            return Reuse(course.key, claim.origin, verdict)
        claim = verdict
    doubt = f"the race of {prior.device} does not hold here: {claim}"
    course.progress(doubt)
    return Reuse(course.key, doubt=doubt)
