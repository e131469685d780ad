"""The heat that measures power: idle once before and once after, and between them the finalists in turns.

How long is planned by the sensor's period and the race's budget: at least 20 periods for each of them (level.py),
within a quarter of the budget, or the whole budget and a minute more when the policy is about energy. What does not fit
is unknown, and its reason says which budget would do. A sensor that fails costs no candidate its place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from regatta_protocol.measurement import Outcome
from regatta_protocol.policy import Policy
from regatta_protocol.values import Power, unknown_power
from regatta_runtimes.power.energy import Idle, Run, energy_of, idle_of
from regatta_runtimes.power.level import MIN_PERIODS, Level, level, period_seen
from regatta_runtimes.power.recorder import Recorder
from regatta_runtimes.power.sensor import PowerSensor, UnknownPower
from regatta_runtimes.worker.job import MAX_TIMED_SAMPLES, Time
from regatta_runtimes.worker.trial import Trial

__all__ = ["Allowance", "Load", "Plan", "make_plan", "measure", "weigh"]

_SHARE = 0.25  # of a race's budget, when power is told and not judged by
_EXTENSION_S = 60.0  # over the budget, when it is judged by; the agent waits 120 s over it (racing.py)
_LEAST_S = 0.5  # of one run: the board's regulators and clock governor settle in some 0.1 s
_LONGEST_S = 10.0  # of one run: after that more brings nothing (EnergyRunner measures for 10 s)
_REPETITIONS = 5
_BLOCK_S = 0.25  # of one Time command: what goes to and fro between blocks takes 1 % of it

Load = Callable[[float], int | None]  # infers for so many seconds; returns how often, None when it is out of the race


@dataclass(frozen=True)
class Allowance:
    """How long the weighing may take."""

    budget_s: float  # the race's
    judged: bool  # the policy is about energy or power
    by_energy: bool = False  # it is the objective

    @classmethod
    def of(cls, budget_s: float, policy: Policy) -> Allowance:
        by_energy = policy.objective == "energy"
        return cls(budget_s, by_energy or policy.max_power_mw is not None, by_energy)

    @property
    def seconds(self) -> float:
        """The most that a slow sensor may take."""
        return self.budget_s + _EXTENSION_S if self.judged else self.budget_s * _SHARE

    @property
    def usual_s(self) -> float:
        """What is taken when less would do as well: longer runs and repetitions make the figures better."""
        return self.budget_s if self.judged else self.budget_s * _SHARE

    def budget_for_s(self, needed_s: float) -> int:
        """Return the budget of a race that would allow so much."""
        return max(1, math.ceil(needed_s - _EXTENSION_S if self.judged else needed_s / _SHARE))


@dataclass(frozen=True)
class Plan:
    """How long each part takes, and for how many of the loads."""

    idle_s: float  # once before, once after
    run_s: float  # one repetition of one load
    settle_s: float  # before each: what a sensor gives then is still of the part before
    repetitions: int
    loads: int

    @property
    def total_s(self) -> float:
        return 2 * (self.idle_s + self.settle_s) + self.loads * self.repetitions * (self.run_s + self.settle_s)


def make_plan(sensor: PowerSensor, period_s: float, loads: int, allowance: Allowance) -> Plan | UnknownPower:
    """Return the plan for as many of the loads as fit, or why not one does."""
    shortest_s = max(_LEAST_S, 1.05 * MIN_PERIODS * max(period_s, sensor.interval_s))
    settle_s = max(0.1, 2 * period_s)

    def plan_for(count: int) -> Plan:
        return Plan(shortest_s, shortest_s, settle_s, 1, count)

    fitting = [count for count in range(1, loads + 1) if plan_for(count).total_s <= allowance.seconds]
    if not fitting:
        needed_s = plan_for(1).total_s
        return UnknownPower(
            f"sensor {sensor.name} is renewed every {period_s:g} s, so measuring one candidate takes {needed_s:.0f} s, "
            f"and a race of {allowance.budget_s:g} s has {allowance.seconds:.0f} s for it: allow "
            f"{allowance.budget_for_s(needed_s)} s (--budget, or race_budget_s in agent.toml)"
        )
    count = fitting[-1]
    each_s = max(shortest_s, min(_LONGEST_S, allowance.usual_s / (count + 2) - settle_s))
    repetitions = max(1, min(_REPETITIONS, int((each_s + settle_s) / (shortest_s + settle_s))))
    run_s = max(shortest_s, (each_s + settle_s) / repetitions - settle_s)
    return Plan(each_s, run_s, settle_s, repetitions, count)


def weigh(
    trials: Sequence[Trial],
    finalists: Sequence[Trial],
    sensor: PowerSensor | UnknownPower,
    allowance: Allowance,
    reopen: Callable[[Trial], bool],
) -> None:
    """Write power, or why it is unknown, into every trial.

    Args:
        finalists: those to measure, the most promising first.
        reopen: gives a trial its worker; False when it is out.
    """
    for trial in trials:
        trial.power = unknown_power(sensor.reason if isinstance(sensor, UnknownPower) else "not among the finalists")
    if isinstance(sensor, UnknownPower) or not finalists:
        return
    powers, left_out = measure([_load(trial, reopen) for trial in finalists], sensor, allowance)
    for trial, power in zip(finalists, powers, strict=False):
        trial.power = power
    for trial in finalists[len(powers) :]:
        trial.power = unknown_power(left_out)
        if allowance.by_energy and any(power.energy_per_inference_mj is not None for power in powers):
            # one candidate of unknown energy would have the whole race judged by latency (objective.py)
            trial.end(Outcome.DROPPED, f"its energy was {left_out}")


def _load(trial: Trial, reopen: Callable[[Trial], bool]) -> Load:
    """Return what lets a trial infer for a while, and leaves nothing in its latency figures."""

    def run(seconds: float) -> int | None:
        if not trial.alive or not reopen(trial):
            return None
        before = len(trial.rounds)
        command = Time(budget_s=seconds, min_samples=1, max_samples=MAX_TIMED_SAMPLES, warmup=0)
        inferences = len(trial.rounds[-1]) if trial.time(command) else None
        del trial.rounds[before:]
        return inferences

    return run


def measure(loads: Sequence[Load], sensor: PowerSensor, allowance: Allowance) -> tuple[list[Power], str]:
    """Return the power of the first loads, as many as there is time for, and why the others are left out."""
    plan = make_plan(sensor, sensor.period_s, len(loads), allowance)
    if isinstance(plan, UnknownPower):
        return [unknown_power(plan.reason)] * len(loads), ""
    with Recorder(sensor) as recorder:
        return _Weighing(recorder, allowance).run(loads, plan)


class _Weighing:
    """One weighing under way."""

    def __init__(self, recorder: Recorder, allowance: Allowance) -> None:
        self._recorder = recorder
        self._sensor = recorder.sensor
        self._allowance = allowance
        self._period_s = recorder.sensor.period_s

    def run(self, loads: Sequence[Load], plan: Plan) -> tuple[list[Power], str]:
        begun_s = self._recorder.now_s()
        before = self._idle(plan)
        better = self._replan(plan, len(loads))
        if isinstance(better, Plan) and better is not plan:
            before = self._idle(better)
        if isinstance(better, UnknownPower):
            return [unknown_power(better.reason)] * len(loads), ""
        if isinstance(before, UnknownPower):
            return [unknown_power(before.reason)] * len(loads), ""
        outcomes = self._turns(loads[: better.loads], better)
        after = self._idle(better)
        slow = self._slower(begun_s, better)
        if slow is not None:
            return [unknown_power(slow)] * len(loads), ""
        idle = idle_of(before, None if isinstance(after, UnknownPower) else after)
        return [self._power(outcome, idle, after) for outcome in outcomes], self._left_out(better, len(loads))

    def _slower(self, begun_s: float, plan: Plan) -> str | None:
        """Return why all was too short for a sensor that showed only in the end how slow it is."""
        seen_s = self._period_seen(begun_s)
        if seen_s <= 1.5 * self._period_s:
            return None
        needed_s = self._allowance.budget_for_s(plan.total_s * seen_s / self._period_s)
        return (
            f"sensor {self._sensor.name} is renewed every {seen_s:.2g} s and says {self._period_s:.2g} s: allow "
            f"{needed_s} s (--budget, or race_budget_s in agent.toml)"
        )

    def _replan(self, plan: Plan, loads: int) -> Plan | UnknownPower:
        """Return the same plan, or another when the sensor turned out to be slower than it says."""
        seen_s = self._period_seen(self._recorder.now_s() - plan.idle_s)
        if seen_s <= 1.5 * self._period_s:
            return plan
        self._period_s = seen_s
        return make_plan(self._sensor, seen_s, loads, self._allowance)

    def _period_seen(self, since_s: float) -> float:
        return period_seen(self._recorder.span(since_s, self._recorder.now_s()).readings, self._sensor)

    def _idle(self, plan: Plan) -> Level | UnknownPower:
        """Return the idle power, measured now."""
        recorder = self._recorder
        start_s = recorder.now_s() + plan.settle_s
        recorder.wait(start_s + plan.idle_s)
        return self._level(start_s)

    def _level(self, start_s: float) -> Level | UnknownPower:
        span = self._recorder.span(start_s, self._recorder.now_s())
        return level(span, self._sensor, self._period_s, self._recorder.fault)

    def _turns(self, loads: Sequence[Load], plan: Plan) -> list[list[Run] | UnknownPower]:
        """Return the runs of each load; rounds go back and forth, so that a drift hits all alike."""
        outcomes: list[list[Run] | UnknownPower] = [[] for _ in loads]
        for number in range(plan.repetitions):
            order = range(len(loads)) if number % 2 == 0 else reversed(range(len(loads)))
            for index in order:
                runs = outcomes[index]
                if isinstance(runs, UnknownPower):
                    continue
                run = self._turn(loads[index], plan)
                if isinstance(run, Run):
                    runs.append(run)
                else:
                    outcomes[index] = run
        return outcomes

    def _turn(self, load: Load, plan: Plan) -> Run | UnknownPower:
        """Return one run of one load, in blocks; what is inferred while the sensor settles is not counted."""
        recorder = self._recorder
        if recorder.hangs:  # inferring for nothing would only cost time
            return UnknownPower(recorder.fault or f"sensor {self._sensor.name} hangs")
        inferences = 0
        start_s = recorder.now_s()
        for counted, seconds in ((False, plan.settle_s), (True, plan.run_s)):
            start_s, inferences = recorder.now_s(), 0
            while (left_s := start_s + seconds - recorder.now_s()) > 0:
                done = load(min(_BLOCK_S, left_s))
                if done is None:
                    return UnknownPower("the candidate was out before its power was measured")
                inferences += done if counted else 0
        found = self._level(start_s)
        return found if isinstance(found, UnknownPower) else Run(found, inferences)

    def _power(self, outcome: list[Run] | UnknownPower, idle: Idle, after: Level | UnknownPower) -> Power:
        if isinstance(outcome, UnknownPower):
            return unknown_power(outcome.reason)
        power = energy_of(outcome, idle, self._sensor, self._period_s)
        if isinstance(after, UnknownPower) and power.method != "none":
            told = f"idle was measured before only, so its drift is not in the uncertainty: {after.reason}"
            return replace(power, reason="; ".join(filter(None, (power.reason, told))))
        return power

    def _left_out(self, plan: Plan, loads: int) -> str:
        shortest_s = Plan(plan.idle_s, plan.run_s, plan.settle_s, 1, loads).total_s
        return (
            f"not measured: the {self._allowance.seconds:.0f} s for power in a race of {self._allowance.budget_s:g} s "
            f"are enough for the {plan.loads} most promising; a budget of {self._allowance.budget_for_s(shortest_s)} s "
            "is enough for all"
        )
