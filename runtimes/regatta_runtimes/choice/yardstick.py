"""What a candidate's accuracy is held to: the fleet's figure, and a reference candidate that ran on this board.

Pure. A candidate is out when either says that it loses more than the policy allows:

1. *The floor*: the best variant's fleet-measured accuracy less the allowed drop. None when the fleet measured nothing.
2. *The reference*: a plain CPU candidate (the runtime's own kernels or XNNPACK) that this board evaluated and that is
   itself not under the floor; of the variant of the best fleet-measured accuracy where that is known and such a one
   was evaluated, otherwise of any; of those one whose evaluation is whole before one that was cut short, then the
   most accurate, then the simplest. The difference is paired (paired.py).

An evaluation that its time ended early is out only when chance cannot explain it: when its whole 95 % interval lies
beyond the limit. A whole evaluation is taken as it is, for the set is what the policy's figure is about.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from regatta_protocol.measurement import PairedDrop
from regatta_protocol.policy import Policy
from regatta_protocol.values import Accuracy
from regatta_runtimes.candidate import Candidate
from regatta_runtimes.choice.paired import RightAnswers, paired_drop
from regatta_runtimes.choice.simplicity import simplicity
from regatta_runtimes.runtime import is_own

__all__ = ["Floor", "Yardstick", "accuracy_floor", "loses_too_much"]

_ROUNDING = 1e-9  # 0.95 − 0.02 is not 0.93 in binary


@dataclass(frozen=True)
class Floor:
    """The least accuracy that a candidate may have, and the size of the evaluation that it came from."""

    value: float
    total: int

    def refuses(self, accuracy: Accuracy | None) -> str | None:
        """Return why a candidate of this accuracy is out, or None."""
        if accuracy is None:
            return None
        value = accuracy.value if accuracy.total >= self.total else accuracy.interval()[1]
        if value >= self.value - _ROUNDING:
            return None
        return (
            f"its accuracy of {accuracy.value:.3f} ({accuracy.correct} of {accuracy.total}) is under the "
            f"{self.value:.3f} that the policy asks for"
        )


def accuracy_floor(fleet: Iterable[Accuracy | None], policy: Policy) -> Floor | None:
    """Return the floor from the variants' fleet-measured accuracies; None when the fleet measured none."""
    best = max((accuracy for accuracy in fleet if accuracy is not None), key=lambda a: a.value, default=None)
    return None if best is None else Floor(best.value - policy.max_accuracy_drop, best.total)


def loses_too_much(drop: PairedDrop | None, policy: Policy) -> str | None:
    """Return why a candidate with this paired difference is out, or None."""
    if drop is None:
        return None
    whole = drop.samples >= drop.available
    if (drop.drop if whole else drop.low) <= policy.max_accuracy_drop + _ROUNDING:
        return None
    return (
        f"it loses {drop.drop * 100:.1f} points of accuracy against {drop.reference} (95 % interval "
        f"{drop.low * 100:.1f} to {drop.high * 100:.1f}, {drop.samples} paired samples), "
        f"and the policy allows {policy.max_accuracy_drop * 100:.3g}"
    )


@dataclass
class Yardstick:
    """The evaluations of one race, by candidate; thread counts share one, for kernels only split their work by them."""

    floor: Floor | None
    policy: Policy
    favored: frozenset[str] = frozenset()  # variants of the best fleet-measured accuracy
    _known: dict[Candidate, RightAnswers] = field(default_factory=dict)

    def anew(self) -> Yardstick:
        """Return the same yardstick without any evaluation."""
        return Yardstick(self.floor, self.policy, self.favored)

    def add(self, candidate: Candidate, answers: RightAnswers) -> None:
        """Take up what a candidate answered."""
        self._known[_one_thread(candidate)] = answers

    @property
    def samples(self) -> int:
        """The most samples that any candidate answered so far."""
        return max((answers.total for answers in self._known.values()), default=0)

    def answers(self, candidate: Candidate) -> RightAnswers | None:
        """Return what the candidate, or one that differs from it in threads only, answered."""
        return self._known.get(_one_thread(candidate))

    def drop(self, candidate: Candidate) -> PairedDrop | None:
        """Return the paired difference against the reference, as it is by now; None before both are known."""
        answers, reference = self.answers(candidate), self.reference()
        if answers is None or reference is None:
            return None
        if reference == _one_thread(candidate):
            size = {"samples": answers.total, "available": answers.available}
            return PairedDrop(reference=reference.id, drop=0.0, low=0.0, high=0.0, **size)
        return paired_drop(reference.id, self._known[reference], answers)

    def refuses(self, candidate: Candidate) -> str | None:
        """Return why the candidate is out for its accuracy, by what is known by now, or None."""
        answers = self.answers(candidate)
        if answers is None:
            return None
        floor = None if self.floor is None else self.floor.refuses(answers.accuracy)
        return floor or loses_too_much(self.drop(candidate), self.policy)

    def reference(self) -> Candidate | None:
        """Return the reference (rule 2 above), or None when no candidate can be one yet."""
        able = {
            candidate: answers
            for candidate, answers in self._known.items()
            if is_own(candidate.runtime, candidate.delegate)
            and (self.floor is None or self.floor.refuses(answers.accuracy) is None)
        }
        favored = {candidate: able[candidate] for candidate in able if candidate.variant in self.favored}
        return _most_accurate(favored or able)


def _one_thread(candidate: Candidate) -> Candidate:
    return replace(candidate, threads=1)


def _most_accurate(known: Mapping[Candidate, RightAnswers]) -> Candidate | None:
    def key(candidate: Candidate) -> tuple[bool, float, tuple[int, bool, int, str]]:
        answers = known[candidate]
        return answers.total < answers.available, -answers.accuracy.value, simplicity(candidate)

    return min(known, key=key, default=None)
