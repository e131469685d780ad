"""Whole races on a simulated board whose true times are known: the best is placed, in turn and in time."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from regatta_protocol.manifest import Policy
from regatta_protocol.measurement import Outcome
from simulated_race import SimulatedBoard, simulate

SINGLE = ("litert/m/xnnpack/t1", "litert/m/none/t1", "tflite/m/none/t1")


def _contest(seed: int) -> dict[str, float]:
    """Return the true times of six candidates: some close to each other, some far, two threads between 2x and 1/5x."""
    random = Random(seed)
    base_us = 10 ** random.uniform(1.5, 3.8)
    single = {name: base_us * random.choice([random.uniform(1, 1.1), random.uniform(1, 20)]) for name in SINGLE}
    return single | {
        name[:-1] + "2": us * random.choice([random.uniform(0.5, 0.6), random.uniform(0.9, 1.1), random.uniform(1, 5)])
        for name, us in single.items()
    }


@pytest.mark.parametrize(
    ("weather", "allowed"),
    [
        (SimulatedBoard(0), 0),
        (SimulatedBoard(0, scatter=0.05, drift=0.5), 0),
        (SimulatedBoard(0, scatter=0.05, drift=0.3, bursts_per_s=1.0), 1),  # 17 % of the time 1.5 and 2.3 times as slow
        # 29 % of the time 1.8 times as slow, and 3.2 times with two threads
        (SimulatedBoard(0, scatter=0.1, bursts_per_s=2.0, burst_factor=1.8), 4),
    ],
    ids=["calm", "drift", "bursts", "storm"],
)
def test_the_best_is_placed_whatever_the_weather(weather: SimulatedBoard, allowed: int) -> None:
    """Of 60 races, at most `allowed` place one that truly takes over 2 % longer: 1 % is a tie, the rest noise."""
    regret: dict[int, float] = {}
    for seed in range(60):
        true_us = _contest(seed)
        verdict, _ = simulate(replace(weather, seed=seed, turns=[]), true_us)
        assert verdict.placement is not None
        regret[seed] = true_us[verdict.placement] / min(true_us.values())

    assert sum(each > 1.02 for each in regret.values()) <= allowed, {s: r for s, r in regret.items() if r > 1.02}


@pytest.mark.parametrize("budget_s", [0.5, 3.0, 20.0])
@pytest.mark.parametrize("slowest_us", [2e3, 2e5])
def test_a_race_keeps_to_its_budget(budget_s: float, slowest_us: float) -> None:
    """One turn of each finalist may run over, for there is at least one round; a fast model needs 10 s at the most."""
    true_us = {name: slowest_us * (1 + 0.01 * number) for number, name in enumerate(_contest(0))}
    board = SimulatedBoard(1, bursts_per_s=1.0)

    verdict, trials = simulate(board, true_us, budget_s=budget_s)

    assert verdict.placement is not None
    turns_s = 2 * sum(1.8**2 * 6 * trial.true_us / 1e6 + 0.1 for trial in trials)
    assert board.now_s < budget_s + turns_s
    assert slowest_us > 1e4 or board.now_s < 10


def test_turns_go_back_and_forth() -> None:
    """In the final each round has the opposite order of the one before, so that a drift favors nobody."""
    board = SimulatedBoard(1)
    names = ["litert/m/xnnpack/t1", "litert/m/none/t1", "tflite/m/none/t1"]

    simulate(board, dict.fromkeys(names, 1000.0))

    final = board.turns[len(names) :]
    assert final[:12] == [*names, *names[::-1]] * 2
    assert all(final.count(name) == final.count(names[0]) for name in names)


@pytest.mark.parametrize(("open_s", "more"), [(0.05, 2), (1.0, 0)])
def test_finalists_go_on_in_new_processes_if_these_start_soon(open_s: float, more: int) -> None:
    """Two more after the first, and none where opening the model takes a second."""
    _, trials = simulate(SimulatedBoard(1), dict.fromkeys(SINGLE, 1000.0), open_s=open_s)

    assert {trial.opened for trial in trials} == {2 + more}  # without a worker to keep, the final itself opens another


def test_one_slow_candidate_costs_a_short_round() -> None:
    """A hundred times slower: a few inferences, and it is out with its figures."""
    board = SimulatedBoard(1)

    verdict, _ = simulate(board, {"litert/m/xnnpack/t1": 1e3, "tflite/m/none/t1": 1e5})

    slow = next(result for result in verdict.candidates if result.id == "tflite/m/none/t1")
    assert slow.outcome == Outcome.DROPPED
    assert board.turns.count("tflite/m/none/t1") == 1
    assert slow.latency is not None
    assert slow.latency.samples <= 5


def test_a_burst_in_its_first_round_costs_nobody_the_race() -> None:
    """What looks two to five times as slow at first is looked at again before it is out."""
    names = [f"litert/v{number}/xnnpack/t1" for number in range(5)]
    true_us = {**dict.fromkeys(names[:4], 1000.0), names[4]: 700.0}

    verdict, _ = simulate(SimulatedBoard(1), true_us, cold_rounds={names[4]: 1})

    assert verdict.placement == names[4]


def test_figures_come_with_their_conditions() -> None:
    """Rounds that count, the hottest reading, throttling once seen, and throughput over the same rounds."""
    board = SimulatedBoard(1, scatter=0.0)

    verdict, _ = simulate(
        board, {"litert/m/xnnpack/t1": 1000.0, "litert/m/none/t1": 1050.0}, cold_rounds=dict.fromkeys(SINGLE, 4)
    )

    for result in verdict.candidates:
        assert result.outcome == Outcome.MEASURED
        assert result.conditions.steady
        assert result.conditions.rounds >= 20
        assert result.conditions.temperature_c == pytest.approx(40 + board.now_s, abs=0.5)
        assert result.conditions.throttled is True
        assert result.latency is not None
        assert result.latency.p50_us == pytest.approx(1000.0 if "xnnpack" in result.id else 1050.0)
        assert result.latency.p90_us < 1100  # the cold rounds do not count
        assert result.throughput_per_s is not None
        assert 0.9 < result.throughput_per_s * result.latency.p50_us / 1e6 < 1.0  # spikes cost some


@pytest.mark.parametrize("objective", ["latency_p50", "latency_p99", "throughput", "energy"])
def test_only_the_objective_may_cost_a_candidate_the_race(objective: str) -> None:
    """1.8 times as slow is out by latency; it stays in where energy or p99 may yet speak for it."""
    true_us = {"litert/m/xnnpack/t1": 1000.0, "litert/m/none/t1": 1800.0, "tflite/m/none/t1": 1010.0}
    policy = Policy.model_validate({"objective": objective})

    verdict, _ = simulate(SimulatedBoard(1), true_us, policy)

    slow = next(result for result in verdict.candidates if result.id == "litert/m/none/t1")
    stays = objective in ("energy", "latency_p99")  # its p50 is under the leader's p99, three times its p50
    assert slow.outcome == (Outcome.MEASURED if stays else Outcome.DROPPED)
