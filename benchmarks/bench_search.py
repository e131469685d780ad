"""Whether architecture search beats random search: digits, five seeds, equal budgets of training steps.

    ./run bench search [--seeds 5] [--strategies evolution,reinforce,darts,darts2]

Every strategy and the control search the small space with the same samples, seeds, budget and latency table; the best
of each is trained in full and counted on 540 digits that nothing was chosen by. What is compared seed by seed is the
reward (accuracy, marked down over the latency target) of these. Needs the [train] extra. Times are the machine's.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from regatta_fleet.examples.digits import data
from regatta_fleet.optimize.nas.contest import compare_seeds
from regatta_fleet.optimize.nas.latency import local_table, measure_files
from regatta_fleet.optimize.nas.objective import SearchResult, reward
from regatta_fleet.optimize.nas.run import layers_of, plan_search, run_search
from regatta_fleet.optimize.nas.space import SMALL
from regatta_fleet.optimize.recipe.models import SearchStep
from regatta_fleet.optimize.samples import Samples, write_samples

CONTROL = "random"


def main() -> int:
    parser = argparse.ArgumentParser(prog="./run bench search", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--strategies", default="evolution,reinforce,darts,darts2")
    parser.add_argument("--budget", type=int, default=SearchStep().budget)
    given = parser.parse_args()
    strategies = [CONTROL, *given.strategies.split(",")]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        split = data.load()
        samples, test = folder / "train.npz", folder / "test.npz"
        write_samples(samples, Samples(split.train_x, split.train_y))
        write_samples(test, Samples(split.test_x, split.test_y))
        table = local_table(layers_of(SMALL, samples), folder)
        print(f"{len(table.layers_us)} layers timed; {SMALL.size()} architectures; budget {given.budget} steps")
        print("| strategy | test accuracy | reward | estimated | measured | tried | time | beside random search |")
        print("|---|--:|--:|--:|--:|--:|--:|---|", flush=True)
        control: list[float] = []
        for strategy in strategies:
            step = SearchStep.model_validate({"strategy": strategy, "budget": given.budget})
            plan = plan_search(step, SMALL, samples, table, test)
            results, measured = [], []
            for seed in range(given.seeds):
                output = folder / f"{strategy}-{seed}.tflite"
                results.append(run_search(plan, seed, output))
                measured.append(measure_files({"best": output})["best"])
            rewards = [worth(result) for result in results]
            control = control or rewards
            verdict = "the control" if strategy == CONTROL else compare_seeds(rewards, control).verdict
            print(row(strategy, results, rewards, measured, verdict), flush=True)
    return 0


def worth(result: SearchResult) -> float:
    """Return the reward of the best one as it was trained in full."""
    assert result.trained_accuracy is not None
    return reward(result.trained_accuracy, result.best.latency_us, result.target_us)


def row(strategy: str, results: list[SearchResult], rewards: list[float], measured: list[float], verdict: str) -> str:
    """Return a line of the table; figures are means over the seeds, with the standard deviation of the reward."""
    accuracy = statistics.mean(result.trained_accuracy or 0.0 for result in results)
    spread = statistics.stdev(rewards) if len(rewards) > 1 else 0.0
    cells = (
        strategy,
        f"{accuracy:.4f}",
        f"{statistics.mean(rewards):.4f} ± {spread:.4f}",
        f"{statistics.mean(result.best.latency_us for result in results):.1f} µs",
        f"{statistics.mean(measured):.1f} µs",
        f"{statistics.mean(len(result.tried) for result in results):.0f}",
        f"{statistics.mean(result.duration_s for result in results):.0f} s",
        verdict,
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
