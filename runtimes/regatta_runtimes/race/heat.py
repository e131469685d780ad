"""The heats of a race in their order: who qualifies, who is accurate enough, the final (final.py), and the scales.

Slow candidates must not eat the time: a candidate costs one short round, and is dropped as soon as it clearly cannot
win; one that a burst of load may have slowed is looked at again. More threads are not tried where even a
perfect speed-up could not catch up.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from regatta_protocol.measurement import Outcome
from regatta_protocol.policy import Policy
from regatta_runtimes.board.thermal import Heat
from regatta_runtimes.candidate import Candidate
from regatta_runtimes.choice.limits import broken_constraint
from regatta_runtimes.choice.simplicity import simplicity
from regatta_runtimes.choice.yardstick import Yardstick
from regatta_runtimes.power.sensor import PowerSensor, UnknownPower
from regatta_runtimes.race.final import Final
from regatta_runtimes.race.weigh import Allowance, weigh
from regatta_runtimes.runtime import is_own
from regatta_runtimes.worker.job import Time
from regatta_runtimes.worker.nursery import Nursery
from regatta_runtimes.worker.trial import Trial

__all__ = ["Heats"]

_QUALIFYING = Time(budget_s=0.025, min_samples=3, max_samples=200, warmup=1)
_CHECK_S = 0.2  # of golden samples; at least two are compared whatever it takes
_QUALIFIED = 2.0  # times the fastest's p50: after one short round on a busy board, twice is clear
_QUALIFIED_FEW = 5.0  # the same while fewer than _FEW_FINALISTS are in: a burst of load makes one look 3 times as slow
_FEW_FINALISTS = 3
_MORE_LOOKS = 2  # at who is between those two; under heavy load one loses the best in 2.3 % of races, two in 1.5 %
_FINALISTS = 8
_ALIVE = 8  # workers kept open between heats; each holds some 50 MB and the model
_QUALIFY_SHARE, _EVALUATE_SHARE = 0.5, 0.3  # of the race's budget
_CHEAP_EVALUATION_S = 0.1  # a loser is evaluated too, for the report, when it costs less than this
_LEAST_EVALUATION_S = 0.5
_NEAR = 0.10  # of the first round: closer on a busy board is no difference


@dataclass
class Heats:
    """One race under way; call its heats in order: qualify, evaluate, rounds, weigh."""

    trials: Sequence[Trial]  # ordered by threads, external delegates last
    nurseries: Mapping[str, Nursery]
    policy: Policy
    yardstick: Yardstick
    budget_s: float
    progress: Callable[[str], None]
    read_heat: Callable[[], Heat]
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._begun = self.clock()

    def _elapsed_s(self) -> float:
        return self.clock() - self._begun

    def qualify(self) -> None:
        """Open, check and briefly time each candidate; take out what cannot win whatever follows."""
        for trial in self.trials:
            hopeless = self._hopeless(trial.candidate)
            if hopeless is not None:
                trial.end(Outcome.DROPPED, hopeless)
            elif self._elapsed_s() > self.budget_s * _QUALIFY_SHARE and self._best() is not None:
                trial.end(Outcome.DROPPED, f"not tried: the race's budget of {self.budget_s:g} s was running out")
            elif self._reopen(trial) and (trial.files.golden is None or trial.check(_CHECK_S)):
                trial.time(_QUALIFYING)
                trial.note_heat(self.read_heat())
            self._tell(trial)
            self._keep_few()
        for _ in range(_MORE_LOOKS):
            best = self._best()
            for trial in self._running():
                if best is not None and best.p50_us * _QUALIFIED < trial.p50_us <= best.p50_us * _QUALIFIED_FEW:
                    self._look_again(trial)

    def _look_again(self, trial: Trial) -> None:
        """Time a candidate once more, for a burst of load that met its first round would have cost it the race."""
        if self._elapsed_s() < self.budget_s * _QUALIFY_SHARE and self._reopen(trial):
            trial.time_again(_QUALIFYING)
            self._tell(trial)

    def evaluate(self) -> None:
        """Measure accuracy from the fastest on, until enough finalists are accurate; drop whoever is clearly slower."""
        deadline_s = self._elapsed_s() + self.budget_s * _EVALUATE_SHARE
        self._evaluate_references(deadline_s)
        accepted: list[Trial] = []
        for trial in self._by_promise():
            accepted = [each for each in accepted if self._is_accurate(each)]
            best = min((each.p50_us for each in accepted if self._fits(each)), default=math.inf)
            allowed = _QUALIFIED if len(accepted) >= _FEW_FINALISTS else _QUALIFIED_FEW
            slow = trial.p50_us > best * allowed or len(accepted) >= _FINALISTS
            if trial.files.evaluation is not None:
                self._evaluate(trial, deadline_s - self._elapsed_s(), only_if_cheap=slow)
                if not trial.alive or not self._is_accurate(trial):
                    continue
            if slow:
                fastest = min(accepted, key=lambda each: each.p50_us)
                what = "not among the finalists" if len(accepted) >= _FINALISTS else "clearly slower"
                ratio = trial.p50_us / fastest.p50_us
                trial.end(
                    Outcome.DROPPED, f"{what}: {ratio:.2f} times the time of {fastest.candidate.id} in the first round"
                )
            else:
                accepted.append(trial)
        for trial in self.trials:
            if trial.accuracy is not None:
                trial.accuracy_drop = self.yardstick.drop(trial.candidate)
            if trial.outcome == Outcome.INACCURATE:  # by then another was the reference, perhaps
                trial.reason = self.yardstick.refuses(trial.candidate) or trial.reason

    def _evaluate_references(self, deadline_s: float) -> None:
        """Evaluate first what the others are compared with: a plain CPU candidate of each variant that may be it."""
        plain = [trial for trial in self._by_promise() if is_own(trial.candidate.runtime, trial.candidate.delegate)]
        fastest: dict[str, Trial] = {}
        for trial in plain:
            if trial.files.evaluation is not None:
                fastest.setdefault(trial.candidate.variant, trial)
        favored = [trial for variant, trial in fastest.items() if variant in self.yardstick.favored]
        references = favored or list(fastest.values())
        for number, trial in enumerate(references):
            left_s = deadline_s - self._elapsed_s()
            self._evaluate(trial, left_s / (len(references) - number + 1))

    def _evaluate(self, trial: Trial, budget_s: float, *, only_if_cheap: bool = False) -> None:
        """Measure a candidate's accuracy, once for all thread counts."""
        yardstick, candidate = self.yardstick, trial.candidate
        if yardstick.answers(candidate) is None:
            if only_if_cheap and yardstick.samples * trial.p50_us / 1e6 > _CHEAP_EVALUATION_S:
                return
            answers = trial.evaluate(max(_LEAST_EVALUATION_S, budget_s)) if self._reopen(trial) else None
            if answers is None:
                return
            yardstick.add(candidate, answers)
        answers = yardstick.answers(candidate)
        trial.accuracy = None if answers is None else answers.accuracy

    def _is_accurate(self, trial: Trial) -> bool:
        """Return whether the candidate loses no more accuracy than the policy allows; if it does, it is out."""
        reason = self.yardstick.refuses(trial.candidate)
        if reason is not None:
            trial.end(Outcome.INACCURATE, reason)
            self._tell(trial)
        return reason is None

    def rounds(self) -> None:
        """Time the finalists in interleaved rounds, dropping those that fall behind."""
        finalists = [trial for trial in self._running() if self._reopen(trial)]
        if finalists:
            left_s = max(0.0, self.budget_s - self._elapsed_s())
            Final(finalists, self.policy, left_s, self._reopen, self.progress, self.read_heat, self.clock).run()

    def weigh(self, sensor: PowerSensor | UnknownPower) -> None:
        """Measure the finalists' power, or write down why it is unknown."""
        weigh(self.trials, self._by_promise(), sensor, Allowance.of(self.budget_s, self.policy), self._reopen)

    def _running(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.alive and trial.rounds]

    def _by_promise(self) -> list[Trial]:
        """Return those running, the fastest first; among those within noise of the fastest, the simplest first."""
        running = self._running()
        best = min((trial.p50_us for trial in running), default=math.inf)

        def key(trial: Trial) -> tuple[float, tuple[int, bool, int, str]]:
            near = trial.p50_us <= best * (1 + _NEAR)
            return best if near else trial.p50_us, simplicity(trial.candidate)

        return sorted(running, key=key)

    def _fits(self, trial: Trial) -> bool:
        """Return whether the candidate may win under the policy, by what is known so far."""
        return trial.alive and broken_constraint(trial.result(), self.policy) is None

    def _best(self) -> Trial | None:
        return min(self._running(), key=lambda each: each.p50_us, default=None)

    def _hopeless(self, candidate: Candidate) -> str | None:
        """Return why more threads cannot win: one-thread time over threads is their least possible time."""
        if candidate.threads == 1 or self._may_refuse():
            # with gates still open the fastest so far may yet be out
            return None
        single = next(
            (
                trial
                for trial in self.trials
                if trial.candidate == Candidate(candidate.runtime, candidate.variant, candidate.delegate, 1)
            ),
            None,
        )
        if single is None:
            return None
        if single.outcome in (Outcome.NO_OP, Outcome.CREATE_FAILED, Outcome.WRONG_OUTPUT):
            return f"not tried: {single.candidate.id} is out ({single.outcome})"
        best = self._best()
        if best is None or not single.rounds:
            return None
        if _QUALIFIED < single.p50_us / candidate.threads / best.p50_us <= _QUALIFIED_FEW:
            self._look_again(single)
        if single.p50_us / candidate.threads > best.p50_us * _QUALIFIED:
            return (
                f"not tried: {single.candidate.id} takes {single.p50_us / best.p50_us:.0f} times the time of "
                f"{best.candidate.id}, more than {candidate.threads} threads could make up"
            )
        return None

    def _may_refuse(self) -> bool:
        """Return whether accuracy or a limit may yet take out the fastest."""
        policy = self.policy
        limits = (policy.max_p99_us, policy.max_memory_bytes, policy.max_temperature_c, policy.max_power_mw)
        evaluates = any(trial.files.evaluation is not None for trial in self.trials)
        return evaluates or any(limit is not None for limit in limits)

    def _reopen(self, trial: Trial) -> bool:
        """Return whether the candidate has a worker with its model open, starting one if need be."""
        return trial.worker is not None or trial.open(self.nurseries[trial.candidate.runtime])

    def _keep_few(self) -> None:
        """End the workers of the slowest when there are too many; evaluate and rounds open them again if needed."""
        open_trials = sorted((each for each in self.trials if each.worker is not None), key=lambda each: each.p50_us)
        for trial in open_trials[_ALIVE:]:
            trial.retire()

    def _tell(self, trial: Trial) -> None:
        if trial.alive:
            self.progress(f"{trial.candidate.id}: {trial.p50_us:.0f} us")
        else:
            self.progress(f"{trial.candidate.id}: {trial.outcome}: {trial.reason}")
