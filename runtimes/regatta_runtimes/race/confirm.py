"""The confirmation run: the few candidates of a claim, opened, checked and timed in turns, in a second or so.

It takes the place of a full race when a prior holds here (claim.py says which and when), and is thrown away when not.
Each candidate runs in a worker of its own, as in a race. Power is not measured: the board's sensors are too slow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from regatta_protocol.errors import Rejected
from regatta_protocol.measurement import CandidateResult, Outcome
from regatta_protocol.policy import Policy
from regatta_protocol.values import Power, unknown_power
from regatta_runtimes.choice.claim import Claim, disagreement, untried
from regatta_runtimes.choice.judge import Verdict, judge
from regatta_runtimes.choice.objective import figure
from regatta_runtimes.choice.yardstick import Yardstick
from regatta_runtimes.power.sensor import PowerSensor, UnknownPower
from regatta_runtimes.worker.job import Time
from regatta_runtimes.worker.nursery import Nursery
from regatta_runtimes.worker.trial import Trial

__all__ = ["Confirmation"]

_CHECK_S = 0.1  # of golden samples; at least two are compared whatever it takes
_EVALUATE_S, _EVALUATE_OTHER_S = 2.0, 0.3  # of the placement, whose accuracy is reported; of each other
_TIMING_S = 0.5  # over all candidates and rounds
_ROUNDS = 4  # the first only warms up
_LEAST_TURN_S = 0.02
_PLACEMENT_TURN_S = 0.15  # its p99 is reported, and gates compare it: 100 samples of a model that takes 4 ms
_TURN_SAMPLES = (2, 400)
_CLEARLY_SLOWER = 3.0  # times the fastest's p50
# A doubt gets a second look, with new workers: it costs a tenth of a race. A burst of load may be over then, and a
# worker whose two threads share a core stays slow as long as it lives (1.5 to 1.9 times, MobileNetV2 and VWW on a
# virtual machine with two cores).
_LOOKS = 2


@dataclass(frozen=True)
class Confirmation:
    """One confirmation run; `run` once.

    `trials` are fresh ones of `claim.tried`, in that order.
    """

    claim: Claim
    trials: Sequence[Trial]
    nurseries: Mapping[str, Nursery]
    policy: Policy
    yardstick: Yardstick  # without any evaluation
    sensor: PowerSensor | UnknownPower
    progress: Callable[[str], None]

    def run(self) -> Verdict | str:
        """Return the verdict over every candidate of this board when the claim holds here, or why it does not."""
        device = self.claim.origin.device
        self.progress(f"confirming the race of {device}: {len(self.trials)} of {len(self.claim.results)} candidates")
        try:
            return self._run()
        except Rejected as err:  # the bundle's samples are at fault: the full race says so of each candidate
            return str(err)
        finally:
            for trial in self.trials:
                trial.retire()

    def _run(self) -> Verdict | str:
        if not all(self._open(trial) for trial in self.trials):
            return self._out()
        self._evaluate()
        if not self.trials[0].alive:
            return self._out()
        doubt = ""
        for look in range(_LOOKS):
            if look > 0:
                self._renew()
            self._time()
            verdict = judge(self._results(), self.policy, self.yardstick.floor)
            found = disagreement(self.claim, verdict, self.policy)
            if found is None:
                return self._confirmed(verdict)
            doubt = found
            self.progress(f"doubted: {doubt}")
        return doubt

    def _open(self, trial: Trial) -> bool:
        """Return whether the candidate opens and is sound on golden samples."""
        trial.power = self._power()
        opened = trial.open(self.nurseries[trial.candidate.runtime])
        return opened and (trial.files.golden is None or trial.check(_CHECK_S))

    def _evaluate(self) -> None:
        """Measure accuracy, once for all thread counts; the placement's is the one that is reported and compared."""
        for number, trial in enumerate(self.trials):
            if trial.files.evaluation is None:
                return
            if self.yardstick.answers(trial.candidate) is None:
                answers = trial.evaluate(_EVALUATE_OTHER_S if number else _EVALUATE_S)
                if answers is None:
                    continue
                self.yardstick.add(trial.candidate, answers)
        for trial in self.trials:
            answers = self.yardstick.answers(trial.candidate)
            if answers is None or not trial.alive:
                continue
            trial.accuracy, trial.accuracy_drop = answers.accuracy, self.yardstick.drop(trial.candidate)
            reason = self.yardstick.refuses(trial.candidate)
            if reason is not None:
                trial.end(Outcome.INACCURATE, reason)

    def _renew(self) -> None:
        """Give those still in a new worker each, and forget what was timed."""
        for trial in self.trials:
            if trial.alive:
                trial.retire()
                trial.rounds.clear()
                trial.open(self.nurseries[trial.candidate.runtime])

    def _time(self) -> None:
        """Time those still in for some rounds, in turns and back, so that a drift of load hits all alike."""
        running = [trial for trial in self.trials if trial.alive]
        least, most = _TURN_SAMPLES
        turn_s = max(_LEAST_TURN_S, _TIMING_S / (_ROUNDS * len(running)))
        turn = Time(budget_s=turn_s, min_samples=least, max_samples=most, warmup=0)
        longer = turn.model_copy(update={"budget_s": max(turn_s, _PLACEMENT_TURN_S)})
        for number in range(_ROUNDS):
            for trial in running if number % 2 == 0 else running[::-1]:
                if trial.alive:
                    trial.time(longer if trial is self.trials[0] else turn)
            if number > 0:  # the rest of the time goes to those that are near each other
                fastest_us = min(trial.p50_us for trial in running)
                running = [trial for trial in running if trial.p50_us <= fastest_us * _CLEARLY_SLOWER]

    def _results(self) -> list[CandidateResult]:
        return [trial.result() for trial in self.trials]

    def _out(self) -> str:
        """Return which candidate is out, and why."""
        trial = next(trial for trial in self.trials if not trial.alive)
        return f"{trial.candidate.id} is {trial.outcome} here: {trial.reason}"

    def _power(self) -> Power:
        if isinstance(self.sensor, UnknownPower):
            return unknown_power(self.sensor.reason)
        return unknown_power(f"a confirmation is too short for the sensor {self.sensor.name}")

    def _confirmed(self, verdict: Verdict) -> Verdict:
        """Return the verdict for the race's placement; this run is too short to prefer another within its noise."""
        placement, origin = self.claim.placement.id, self.claim.origin
        confirmed = f"confirmed: what {origin.device} measured holds here"
        candidates = verdict.candidates
        reason = verdict.reason
        if verdict.placement != placement:
            placed = next(one for one in candidates if one.id == placement)
            why = f"{figure(placed, verdict.objective)}, within the noise of this short run of {verdict.placement}"
            reasons = {placement: why, verdict.placement: f"within noise of {placement}, which the full race placed"}
            candidates = tuple(
                one.model_copy(update={"reason": reasons[one.id]}) if one.id in reasons else one for one in candidates
            )
            reason = f"{placement}: {why}"
        return Verdict(
            placement=placement,
            reason=f"{reason}; {confirmed}",
            objective=verdict.objective,
            candidates=(*candidates, *untried(self.claim)),
        )
