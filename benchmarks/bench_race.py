"""How long a race takes, how good its choice is, and what it wins: `./run bench race [MODEL.tflite ...]`.

For each model (the shipped digits model; those of ../shared/data too where they are): the time of a whole race; the
regret, p50 of the placement over p50 of the best candidate, where every candidate of the race is measured again in
interleaved rounds and its best round counts; and how many times faster the placement is than the naive default,
tflite-runtime with one thread. Ratios compare within the run: absolute times are this machine's.
"""

from __future__ import annotations

import argparse
import platform
import time
from dataclasses import dataclass
from pathlib import Path

from regatta_fleet.examples.digits import MODEL
from regatta_protocol.measurement import RaceReport
from regatta_runtimes.candidate import parse_candidate_id
from regatta_runtimes.measure import measure_file
from regatta_runtimes.race import RaceSpec, RaceVariant, run_race

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
NAIVE = "tflite/model/none/t1"


@dataclass(frozen=True)
class Row:
    """The figures of one model; None where a candidate did not run here."""

    model: str
    race_s: float
    placement: str
    p50_us: float
    regret: float
    times_naive: float | None


def race(model: Path) -> tuple[RaceReport, float]:
    """Return the report and the seconds that it took."""
    spec = RaceSpec(model="model", version=1, variants=(RaceVariant(name="model", path=str(model)),))
    began = time.perf_counter()
    report = run_race(spec, lambda _line: None)
    return report, time.perf_counter() - began


def measure(model: Path, rounds: int) -> Row | None:
    """Return the model's figures, or None when nothing could run it."""
    report, race_s = race(model)
    if report.placement is None:
        return None
    best: dict[str, float] = {}
    ids = [one.id for one in report.candidates if one.latency is not None]
    for _ in range(rounds):
        for name in ids:
            measured = measure_file(parse_candidate_id(name), model)
            if measured.latency is not None:
                best[name] = min(best.get(name, float("inf")), measured.latency.p50_us)
    placed_us = best[report.placement]
    naive_us = best.get(NAIVE)
    return Row(
        model.name,
        race_s,
        report.placement,
        placed_us,
        placed_us / min(best.values()),
        None if naive_us is None else naive_us / placed_us,
    )


def main() -> None:
    """Print one line a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    models = arguments.models or [MODEL, *sorted(SHARED.rglob("*[!u].tflite"))]
    if not arguments.models and not SHARED.is_dir():
        print(f"the models of {SHARED.name} are not beside this checkout: only the shipped one is raced")
    print(f"{platform.machine()}, {platform.python_version()}, {time.strftime('%Y-%m-%d')}")
    print(f"{'MODEL':40} {'RACE s':>7} {'p50 us':>10} {'REGRET':>7} {'x NAIVE':>8}  PLACEMENT")
    for model in models:
        row = measure(model.resolve(), arguments.rounds)
        if row is None:
            print(f"{model.name:40} nothing here runs it")
            continue
        naive = "-" if row.times_naive is None else f"{row.times_naive:.2f}"
        print(f"{row.model:40} {row.race_s:7.1f} {row.p50_us:10.1f} {row.regret:7.2f} {naive:>8}  {row.placement}")


if __name__ == "__main__":
    main()
