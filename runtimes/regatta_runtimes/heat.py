"""The heats of a race: who qualifies, who is accurate enough, and rounds that interleave the finalists.

Slow candidates must not eat the time: a candidate costs one short round, and is dropped as soon as it clearly cannot
win. More threads are not tried where even a perfect speed-up could not catch up. Rounds interleave, so that a drift of
temperature or load hits all alike.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from regatta_protocol.manifest import Policy
from regatta_protocol.measurement import Accuracy, Outcome
from regatta_runtimes.candidate import Candidate
from regatta_runtimes.job import Time
from regatta_runtimes.judge import MAX_NOISE, Floor, broken_constraint, simplicity
from regatta_runtimes.nursery import Nursery
from regatta_runtimes.power import PowerSensor, UnknownPower
from regatta_runtimes.trial import Trial
from regatta_runtimes.weigh import Allowance, weigh

__all__ = ["Heats"]

_QUALIFYING = Time(budget_s=0.025, min_samples=3, max_samples=200, warmup=1)
_CHECK_S = 0.2  # of golden samples; at least two are compared whatever it takes
_QUALIFIED = 2.0  # times the fastest's p50: after one short round on a busy board, twice is clear
_QUALIFIED_FEW = 5.0  # the same while fewer than _FEW_FINALISTS are in: a burst of load makes one look 3 times as slow
_FEW_FINALISTS = 3
_STILL_IN = 1.25  # the same after two full rounds, by each one's best round
_FINALISTS = 8
_ALIVE = 8  # workers kept open between heats; each holds some 50 MB and the model
_ROUNDS = 5
_ROUND_S = (0.02, 0.25)  # bounds of one candidate's turn in a round
_ROUND_SAMPLES = 400
_QUALIFY_SHARE, _EVALUATE_SHARE = 0.5, 0.3  # of the race's budget
_CHEAP_EVALUATION_S = 0.1  # a loser is evaluated too, for the report, when it costs less than this


@dataclass
class Heats:
    """One race under way; call its heats in order: qualify, evaluate, rounds, weigh."""

    trials: Sequence[Trial]  # ordered by threads, external delegates last
    nurseries: Mapping[str, Nursery]
    policy: Policy
    floor: Floor | None
    budget_s: float
    progress: Callable[[str], None]

    def __post_init__(self) -> None:
        self._begun = time.monotonic()

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._begun

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
            self._tell(trial)
            self._keep_few()

    def evaluate(self) -> None:
        """Measure accuracy from the fastest on, until enough finalists are accurate; drop whoever is clearly slower."""
        accepted: list[Trial] = []
        known: dict[tuple[str, str, str], Accuracy] = {}
        deadline = self._elapsed_s() + self.budget_s * _EVALUATE_SHARE
        for trial in self._by_promise():
            best = min((each.p50_us for each in accepted if self._fits(each)), default=math.inf)
            allowed = _QUALIFIED if len(accepted) >= _FEW_FINALISTS else _QUALIFIED_FEW
            slow = trial.p50_us > best * allowed or len(accepted) >= _FINALISTS
            if trial.files.evaluation is not None:
                self._evaluate(trial, known, max(0.5, deadline - self._elapsed_s()), only_if_cheap=slow)
                if not trial.alive:
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

    def _evaluate(
        self, trial: Trial, known: dict[tuple[str, str, str], Accuracy], budget_s: float, *, only_if_cheap: bool
    ) -> None:
        """Measure a candidate's accuracy, once for all thread counts: kernels only split their work by them."""
        candidate = trial.candidate
        key = (candidate.runtime, candidate.variant, candidate.delegate)
        if key not in known:
            size = max((accuracy.total for accuracy in known.values()), default=0)
            if only_if_cheap and size * trial.p50_us / 1e6 > _CHEAP_EVALUATION_S:
                return
            if not self._reopen(trial) or not trial.evaluate(budget_s) or trial.accuracy is None:
                return
            known[key] = trial.accuracy
        trial.accuracy = known[key]
        reason = None if self.floor is None else self.floor.refuses(trial.accuracy)
        if reason is not None:
            trial.end(Outcome.INACCURATE, reason)
            self._tell(trial)

    def rounds(self) -> None:
        """Time the finalists in interleaved rounds, dropping those that fall behind."""
        finalists = [trial for trial in self._running() if self._reopen(trial)]
        if not finalists:
            return
        left_s = max(0.0, self.budget_s - self._elapsed_s())
        turn_s = min(_ROUND_S[1], max(_ROUND_S[0], left_s / 2 / (_ROUNDS * len(finalists))))
        turn = Time(budget_s=turn_s, min_samples=5, max_samples=_ROUND_SAMPLES, warmup=2)
        self.progress(f"rounds: {len(finalists)} finalists, {_ROUNDS} rounds of {turn_s * 1000:.0f} ms each")
        for number in range(_ROUNDS):
            order = finalists if number % 2 == 0 else finalists[::-1]
            for trial in order:
                if trial.alive:
                    trial.time(turn)
            finalists = [trial for trial in finalists if trial.alive]
            best = min((trial for trial in finalists if self._fits(trial)), key=lambda each: each.p50_us, default=None)
            if number == 0 or best is None:
                continue
            for trial in finalists:
                if trial.best_round_us > best.best_round_us * _STILL_IN and trial.p50_us > best.p50_us:
                    ratio = trial.best_round_us / best.best_round_us
                    trial.end(
                        Outcome.DROPPED, f"{ratio:.2f} times the time of {best.candidate.id} after {number + 1} rounds"
                    )
            finalists = [trial for trial in finalists if trial.alive]
            if self._elapsed_s() > self.budget_s:
                return

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
            near = trial.p50_us <= best * (1 + MAX_NOISE)
            return best if near else trial.p50_us, simplicity(trial.candidate)

        return sorted(running, key=key)

    def _fits(self, trial: Trial) -> bool:
        """Return whether the candidate may win under the policy, by what is known so far."""
        return trial.alive and broken_constraint(trial.result(), self.policy) is None

    def _best(self) -> Trial | None:
        return min(self._running(), key=lambda each: each.p50_us, default=None)

    def _hopeless(self, candidate: Candidate) -> str | None:
        """Return why more threads cannot win: one-thread time over threads is their least possible time."""
        if candidate.threads == 1 or self.floor is not None or self.policy.max_memory_bytes is not None:
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
        if best is not None and single.rounds and single.p50_us / candidate.threads > best.p50_us * _QUALIFIED:
            return (
                f"not tried: {single.candidate.id} takes {single.p50_us / best.p50_us:.0f} times the time of "
                f"{best.candidate.id}, more than {candidate.threads} threads could make up"
            )
        return None

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
