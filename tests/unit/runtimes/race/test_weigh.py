"""The heat that measures power: how long it may take, whom it measures, and what it says when it cannot."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from power_rig import plant
from regatta_protocol.measurement import Outcome
from regatta_protocol.policy import Policy
from regatta_runtimes.candidate import Candidate
from regatta_runtimes.errors import SensorFault
from regatta_runtimes.power.sensor import PowerSensor, UnknownPower, stamped
from regatta_runtimes.race.run import RaceSpec, RaceVariant, run_race
from regatta_runtimes.race.weigh import Allowance, Load, Plan, make_plan, measure, weigh
from regatta_runtimes.worker.job import Time
from regatta_runtimes.worker.trial import Trial, TrialFiles, TrialLimits

TOLD = Allowance(budget_s=20, judged=False)
JUDGED = Allowance(budget_s=20, judged=True)
RAIL = "sys/class/hwmon/hwmon0"

pytestmark = pytest.mark.alone  # the loads and the sensor run in real time


def sensor_of(period_s: float = 0.02, read_mw: Callable[[], float] = lambda: 0.0) -> PowerSensor:
    return PowerSensor("probe", "board", "measured", period_s, stamped(read_mw))


def planned(found: Plan | UnknownPower) -> Plan:
    assert isinstance(found, Plan), found
    return found


@given(
    period_s=st.floats(0.001, 30),
    loads=st.integers(1, 8),
    budget_s=st.floats(0.5, 3600),
    judged=st.booleans(),
)
def test_a_plan_is_long_enough_for_the_sensor_and_short_enough_for_the_race(
    period_s: float, loads: int, budget_s: float, judged: bool
) -> None:
    """20 periods each and no more than allowed; else a budget is named that would do."""
    sensor, allowance = sensor_of(period_s), Allowance(budget_s, judged)
    plan = make_plan(sensor, period_s, loads, allowance)

    if isinstance(plan, Plan):
        assert plan.total_s <= allowance.seconds * 1.001
        assert min(plan.idle_s, plan.run_s) >= 20 * period_s
        assert 1 <= plan.loads <= loads
        assert 1 <= plan.repetitions <= 5
    else:
        enough = Allowance(float(plan.reason.split(" s (--budget")[0].split()[-1]), judged)
        assert enough.budget_s > budget_s
        assert isinstance(make_plan(sensor, period_s, 1, enough), Plan)


def test_a_slow_sensor_needs_a_budget_and_a_policy_of_energy_extends_it() -> None:
    """One second a figure: not within a default race, unless it is judged by."""
    refused = make_plan(sensor_of(1.0), 1.0, 3, TOLD)
    extended = planned(make_plan(sensor_of(1.0), 1.0, 3, JUDGED))

    assert isinstance(refused, UnknownPower)
    assert "allow 276 s (--budget, or race_budget_s in agent.toml)" in refused.reason
    assert (extended.loads, extended.repetitions) == (1, 1)


def test_a_fast_sensor_is_given_repetitions() -> None:
    """Time that is left is used: five runs of each, and the longest is 10 s."""
    plan = planned(make_plan(sensor_of(0.01), 0.01, 3, Allowance(budget_s=100, judged=True)))

    assert (plan.loads, plan.repetitions, plan.idle_s) == (3, 5, 10)


@pytest.mark.parametrize(
    ("policy", "judged"),
    [(Policy(), False), (Policy(objective="energy"), True), (Policy(max_power_mw=5000), True)],
)
def test_energy_and_power_policies_extend_the_budget(policy: Policy, judged: bool) -> None:
    """Told otherwise."""
    assert Allowance.of(20, policy).judged is judged


class Board:
    """Draws what its loads make it draw, with noise."""

    def __init__(self, idle_mw: float = 2000.0) -> None:
        self.idle_mw = idle_mw
        self.load_mw = 0.0
        self._chance = random.Random(7)

    def read_mw(self) -> float:
        return self.idle_mw + self.load_mw + self._chance.gauss(0, 20)

    def load(self, extra_mw: float, per_s: float) -> Callable[[float], int | None]:
        def run(seconds: float) -> int | None:
            self.load_mw = extra_mw
            threading.Event().wait(seconds)
            self.load_mw = 0.0
            return max(1, round(seconds * per_s))

        return run


def test_each_load_has_its_own_energy_above_idle() -> None:
    """2 W at 100 a second is 20 mJ; 4 W at 1000 a second is 4 mJ; idle is told."""
    board = Board()
    loads = [board.load(2000, 100), board.load(4000, 1000)]

    (slow, fast), _ = measure(loads, sensor_of(0.02, board.read_mw), Allowance(12, judged=False))

    assert slow.energy_per_inference_mj == pytest.approx(20, rel=0.1)
    assert fast.energy_per_inference_mj == pytest.approx(4, rel=0.1)
    assert slow.idle_power_mw == pytest.approx(2000, rel=0.05)
    assert slow.power_mw == pytest.approx(4000, rel=0.05)
    assert slow.energy_uncertainty_mj is not None and 0 < slow.energy_uncertainty_mj < 4
    assert (slow.method, slow.reason) == ("measured", None)


def test_what_does_not_fit_is_left_out_with_the_budget_that_would_do() -> None:
    """The most promising are measured."""
    board = Board()
    loads = [board.load(2000, 100) for _ in range(6)]

    powers, left_out = measure(loads, sensor_of(0.02, board.read_mw), Allowance(9, judged=False))

    assert 1 <= len(powers) < 6
    assert powers[0].energy_per_inference_mj is not None
    assert "a budget of" in left_out


def test_a_load_that_ends_is_unknown_and_the_others_are_measured() -> None:
    """A candidate that crashes while it is weighed."""
    board = Board()

    loads: list[Load] = [lambda _seconds: None, board.load(2000, 100)]
    (gone, sound), _ = measure(loads, sensor_of(0.02, board.read_mw), TOLD)

    assert "was out before" in (gone.reason or "")
    assert sound.energy_per_inference_mj is not None


def test_a_sensor_that_stops_in_the_middle_is_unknown_for_those_after() -> None:
    """Its last fault is told; nothing raises."""
    board, reads = Board(), count()

    def read_mw() -> float:
        if next(reads) > 40:
            raise SensorFault("the bus is dead")
        return board.read_mw()

    (power,), _ = measure([board.load(2000, 100)], sensor_of(0.02, read_mw), TOLD)

    assert power.method == "none"
    assert "the bus is dead" in (power.reason or "")


def test_a_sensor_that_hangs_costs_no_more_than_its_plan() -> None:
    """The read never returns; the weighing does."""
    board, reads, never = Board(), count(), threading.Event()

    def read_mw() -> float:
        if next(reads) > 60:
            never.wait()
        return board.read_mw()

    sensor = replace(sensor_of(0.02, read_mw), timeout_s=0.1)
    (power,), _ = measure([board.load(2000, 100)], sensor, TOLD)
    never.set()

    assert power.method == "none"
    assert "hangs" in (power.reason or "")


def test_a_sensor_slower_than_it_says_is_found_out() -> None:
    """It says 20 ms and is renewed every 0.4 s: 20 of those do not fit, so nothing is told."""
    board = Board()
    shown = [0.0, 0.0]  # when, milliwatts

    def read_mw() -> float:
        if time.monotonic() - shown[0] > 0.4:
            shown[:] = [time.monotonic(), board.read_mw()]
        return shown[1]

    (power,), _ = measure([board.load(2000, 100)], sensor_of(0.02, read_mw), Allowance(24, judged=False))

    assert power.method == "none"
    assert "is renewed every 0.4" in (power.reason or "")


@dataclass
class WeighedTrial(Trial):
    """A candidate that makes a board draw 2 W more than idle, and infers 100 times a second."""

    board: Board = field(default_factory=Board)

    def time(self, command: Time) -> bool:
        self.rounds.append([10_000.0] * (self.board.load(2000, 100)(command.budget_s) or 0))
        return True


@pytest.mark.parametrize(
    ("policy", "outcome"), [(Policy(objective="energy"), Outcome.DROPPED), (Policy(), None)], ids=["judged", "told"]
)
def test_who_is_left_out_is_out_when_energy_decides(policy: Policy, outcome: Outcome | None) -> None:
    """Else its unknown energy would have the race judged by latency; what was measured keeps its latency figures."""
    board = Board()
    trials = [
        WeighedTrial(Candidate("litert", "v", "none", threads), TrialFiles(Path("m")), TrialLimits(), board=board)
        for threads in (1, 2, 3, 4)
    ]
    for trial in trials:
        trial.rounds = [[10_000.0], [10_000.0]]
    allowance = replace(Allowance.of(1, policy), judged=False, budget_s=9)

    weigh(trials, trials[:3], sensor_of(0.02, board.read_mw), allowance, lambda _trial: True)

    assert trials[0].power.energy_per_inference_mj == pytest.approx(20, rel=0.1)
    assert (trials[0].outcome, trials[2].outcome) == (None, outcome)
    assert trials[2].power.method == "none" and "a budget of" in (trials[2].power.reason or "")
    assert trials[3].power.reason == "not among the finalists"
    assert [len(trial.rounds) for trial in trials] == [2, 2, 2, 2]


@contextmanager
def live_board(root: Path) -> Iterator[None]:
    """Show on a Jetson's rail 3 W and 4 W more for each processor second that our children use in a second."""
    plant(root, {f"{RAIL}/name": "ina3221", f"{RAIL}/in1_label": "VDD_IN", f"{RAIL}/in1_input": "5000"})
    stop, chance = threading.Event(), random.Random(8)

    def used_s() -> float:
        total = 0.0
        for process in psutil.Process(os.getpid()).children(recursive=True):
            try:
                times = process.cpu_times()
            except psutil.Error:
                continue
            total += times.user + times.system
        return total

    def draw() -> None:
        last_s, last_used_s = time.monotonic(), used_s()
        while not stop.wait(0.04):
            now_s, now_used_s = time.monotonic(), used_s()
            share = max(0.0, now_used_s - last_used_s) / (now_s - last_s)
            last_s, last_used_s = now_s, now_used_s
            power_mw = 3000 + 4000 * min(share, 2) + chance.gauss(0, 20)
            plant(root, {f"{RAIL}/curr1_input": f"{round(power_mw / 5)}\n"})

    plant(root, {f"{RAIL}/curr1_input": "600\n"})
    thread = threading.Thread(target=draw)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_a_race_on_a_board_with_a_sensor_is_judged_by_energy(tmp_path: Path) -> None:
    """A Jetson's tree whose input rail follows the work: energy and idle are told for the placement."""
    model = Path(__file__).parents[4] / "runtimes/regatta_runtimes/race/probe.tflite"
    spec = RaceSpec(
        model="probe",
        version=1,
        variants=(RaceVariant(name="probe", path=str(model)),),
        policy=Policy(objective="energy"),
        sysroot=str(tmp_path),
        threads=(1,),
        budget_s=4.0,
        runtimes=("litert",),
    )
    with live_board(tmp_path):
        report = run_race(spec)

    placed = report.placed()
    assert placed is not None
    assert report.board.power_sensor == "ina3221"
    assert (placed.power.method, placed.power.coverage) == ("measured", "VDD_IN")
    assert placed.power.idle_power_mw == pytest.approx(3000, rel=0.2)
    assert placed.power.power_mw is not None and placed.power.power_mw > 3300  # it may not get a whole processor
    assert placed.power.energy_per_inference_mj is not None, placed.power.reason
    assert placed.power.energy_per_inference_mj > 0
    assert report.objective == "energy"
