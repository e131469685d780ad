"""The final of a race: short turns in rounds, in alternating order, until the winner is clear or the time is over.

How it goes:
1. The time is divided into rungs. After each, whoever is clearly slower drops out (halving.py), and the others go on in
   new processes: what one has by luck it keeps for life (Kalibera and Jones, ISMM 2013), and it is another that serves.
2. While the leader has not settled (steady.py) or another one may yet be ahead of it, it goes on, up to a limit. Who is
   left then was measured in every round.
3. The rounds until every finalist had settled are warm-up; the same rounds then count for all of them.

The final lasts for seconds although a fast model gives its thousand inferences in a fraction of one: other programs,
and the host of a virtual machine, change a board's speed for a second at a time, most of all with several threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from regatta_protocol.manifest import Policy
from regatta_protocol.measurement import Outcome
from regatta_runtimes.board.thermal import Heat
from regatta_runtimes.choice.limits import broken_constraint
from regatta_runtimes.race.halving import MIN_ROUNDS, Interval, dropouts, is_decided, ratio_interval
from regatta_runtimes.worker.job import Time
from regatta_runtimes.worker.percentile import percentile
from regatta_runtimes.worker.steady import is_steady, warmup_rounds
from regatta_runtimes.worker.trial import Trial

__all__ = ["Final"]

_ALLOWANCES = (2.0, 1.5, 1.2)  # one a rung: how many times the leader's time is still let in
_SPAN_S, _SPAN_SHARE = 3.0, 0.5  # of all rungs together, at most so much of the time left
_EXTRA_S, _EXTRA_SHARE = 2.0, 0.3  # for what is undecided after that
_STRETCH_S = 0.25  # of extra rounds, between looks at whether it is decided
# under 10 ms a turn, asking and answering (1 ms) and getting the caches back would be a good part of it
_TURN = Time(budget_s=0.01, min_samples=3, max_samples=400, warmup=1, warmup_s=0.001)
_RENEWED_ROUNDS = 8  # in one process, for a leak to show (leak.py)
_RENEWED_US = 200_000  # to the first inference, at most: three processes of eight finalists then cost some seconds
_ENERGY_SLACK = 3.0  # an accelerator that takes three times as long may still need less energy than a processor


@dataclass
class Final:
    """One final; `run` it once. What it found is in the trials."""

    finalists: Sequence[Trial]
    policy: Policy
    left_s: float  # of the race's budget
    reopen: Callable[[Trial], bool]  # gives a trial a worker, unless it has one
    progress: Callable[[str], None]
    read_heat: Callable[[], Heat]
    clock: Callable[[], float] = time.monotonic

    def run(self) -> None:
        """Time the finalists, dropping those that fall behind."""
        self._begun = self.clock()
        self._before = {trial.candidate.id: len(trial.rounds) for trial in self.finalists}
        self._number = 0
        self.progress(f"final: {len(self.finalists)} candidates, in turns of {_TURN.budget_s * 1000:.0f} ms or more")
        span_s = min(_SPAN_S, self.left_s * _SPAN_SHARE)
        for rung, allowance in enumerate(_ALLOWANCES, 1):
            self._rounds_until(span_s * rung / len(_ALLOWANCES))
            self._drop(allowance)
            if len(self._running()) < 2 and self._is_over():
                break
            if rung < len(_ALLOWANCES):
                self._renew()
        limit_s = span_s + min(_EXTRA_S, self.left_s * _EXTRA_SHARE)
        while not self._is_over() and self._elapsed_s() < limit_s:
            self._rounds_until(self._elapsed_s() + _STRETCH_S)
        self._set_warmup()
        self.progress(f"final: {self._number} rounds in {self._elapsed_s():.1f} s")

    def _elapsed_s(self) -> float:
        return self.clock() - self._begun

    def _is_out_of_time(self) -> bool:
        """Return whether the race's budget is spent; one round there is even then."""
        return self._elapsed_s() > self.left_s and self._number > 0

    def _running(self) -> list[Trial]:
        return [trial for trial in self.finalists if trial.alive]

    def _rounds_until(self, elapsed_s: float) -> None:
        """Go on until then, and until there are enough rounds to drop anyone by."""
        while self._running() and (self._elapsed_s() < elapsed_s or self._number < MIN_ROUNDS):
            if self._is_out_of_time():
                return
            self._round()

    def _round(self) -> None:
        """Give each a turn, in the other direction than in the round before: a drift then favors nobody."""
        running = self._running()
        for trial in running if self._number % 2 == 0 else reversed(running):
            if self._is_out_of_time():
                break
            if trial.time(_TURN) and not trial.keeps_memory():
                self.progress(f"{trial.candidate.id}: {trial.outcome}: {trial.reason}")
        heat = self.read_heat()
        for trial in running:
            trial.note_heat(heat)
        self._number += 1

    def _drop(self, allowance: float) -> None:
        """End those that are clearly slower than the leader."""
        leader = self._leader()
        if leader is None or self._number < MIN_ROUNDS:
            return
        out = dropouts(self._ratios(leader), allowance)
        for trial in self._running():
            if trial.candidate.id in out:
                ratio = median(self._figures(trial)) / median(self._figures(leader))
                reason = f"{ratio:.2f} times the time of {leader.candidate.id} in {self._number} rounds side by side"
                trial.end(Outcome.DROPPED, reason)
                self.progress(f"{trial.candidate.id}: {Outcome.DROPPED}: {reason}")

    def _renew(self) -> None:
        """Give those a new process that are through enough rounds in theirs, and are soon back."""
        for trial in self._running():
            if len(trial.memory_bytes) >= _RENEWED_ROUNDS and (trial.first_us or 0) < _RENEWED_US:
                trial.retire()
                self.reopen(trial)

    def _leader(self) -> Trial | None:
        """Return the best of those that fit the policy, by what is known so far."""
        fitting = [trial for trial in self._running() if broken_constraint(trial.result(), self.policy) is None]
        return min(fitting, key=lambda trial: median(self._bars(trial)), default=None)

    def _ratios(self, leader: Trial) -> dict[str, Interval]:
        """Return, for everyone but the leader, how many times the leader's figure theirs is."""
        bars = self._bars(leader)
        return {
            trial.candidate.id: ratio_interval(self._figures(trial), bars)
            for trial in self._running()
            if trial is not leader
        }

    def _is_over(self) -> bool:
        """Return whether more rounds could not matter, or there is no more time for them."""
        leader = self._leader()
        if leader is None or self._is_out_of_time():
            return True
        return is_steady(self._figures(leader)) and is_decided(self._ratios(leader))

    def _figures(self, trial: Trial) -> list[float]:
        """Return what a candidate is dropped by, for each round."""
        return [
            fmean(samples) if self.policy.objective == "throughput" else percentile(sorted(samples), 0.5)
            for samples in trial.rounds[self._before[trial.candidate.id] :]
        ]

    def _bars(self, trial: Trial) -> list[float]:
        """Return what others are dropped for being above, for each round, were this one the leader.

        For p99 that is its p99 over all rounds: what another one's p99 is takes long to know, but surely it is above
        its p50.
        """
        if self.policy.objective == "latency_p99":
            rounds = trial.rounds[self._before[trial.candidate.id] :]
            p99_us = percentile(sorted(sample for samples in rounds for sample in samples), 0.99)
            return [p99_us] * len(rounds)
        slack = _ENERGY_SLACK if self.policy.objective == "energy" else 1.0
        return [figure * slack for figure in self._figures(trial)]

    def _set_warmup(self) -> None:
        """Have the same rounds count for all that are still in."""
        warmup = max((warmup_rounds(self._figures(trial)) for trial in self._running()), default=0)
        for trial in self.finalists:
            rounds = len(trial.rounds) - self._before[trial.candidate.id]
            trial.warmup_rounds = self._before[trial.candidate.id] + min(warmup, rounds // 3)
