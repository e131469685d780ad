"""How long a race takes, how good its choice is, and what it wins: `./run bench race [MODEL.tflite ...]`.

Each model (the shipped digits model; those of ../shared/data too where they are) is raced again and again, in a child
process as the agent starts it. Before and after each race every contender is measured in new processes, in interleaved
turns (a *block*), and beside the placement its twin: the same candidate in one process more. Median and worst of:

REGRET    p50 of the placement over p50 of the best, both over all blocks: what the choice costs in the long run
RIGHT NOW the same over the blocks right before and right after the race: what it costs as the machine is just then
ONE BLOCK as RIGHT NOW, for whoever is best in the block before a race, judged by the block after it: how well an
          exhaustive measurement tells what comes next on this machine. A race as good as this is as good as can be
A/A       p50 of the twin over p50 of the placement, in the same block; the worst is the one farthest from 1

and x NAIVE, p50 of tflite-runtime with one thread over p50 of the placement that most races chose, over all blocks.

Ratios compare within the run: absolute times are this machine's. CONTROL is the proportional set size of the process
that started the races, before the first and after the last.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median

from race_control import __file__ as CONTROL

from regatta_fleet.examples.digits import MODEL
from regatta_protocol.codec import decode, encode
from regatta_protocol.measurement import Outcome, RaceReport
from regatta_runtimes.candidate import parse_candidate_id
from regatta_runtimes.race.run import RaceSpec, RaceVariant
from regatta_runtimes.worker.job import Time
from regatta_runtimes.worker.nursery import Nursery
from regatta_runtimes.worker.percentile import percentile
from regatta_runtimes.worker.trial import Trial, TrialFiles, TrialLimits

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
NAIVE = "tflite/model/none/t1"
TURN = Time(budget_s=0.02, min_samples=3, max_samples=400, warmup=1, warmup_s=0.002)
NEAR = 2.0  # times the best of the first block: what is slower can be nobody's best, and is measured only there
MAX_REPORT_BYTES = 1 << 20

Block = Mapping[str, Sequence[float]]  # id -> microseconds of single inferences


@dataclass
class Control:
    """The process that starts the races, and what it tells."""

    process: subprocess.Popen[str]
    folder: Path
    pss_bytes: list[int] = field(default_factory=list)  # before the first race, then after each

    def race(self, model: Path, threads: tuple[int, ...] | None) -> tuple[RaceReport, float]:
        """Return the report and the seconds that it took."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        spec, output = self.folder / "spec.json", self.folder / "report.json"
        variants = (RaceVariant(name="model", path=str(model)),)
        spec.write_bytes(encode(RaceSpec(model="model", version=1, variants=variants, threads=threads)))
        self.process.stdin.write(f"{spec} {output}\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if answer["status"] != 0:
            raise SystemExit(f"the race of {model.name} {answer['said']}")
        if answer["pss_before_bytes"] is not None:
            self.pss_bytes += [answer["pss_before_bytes"]] if not self.pss_bytes else []
            self.pss_bytes.append(answer["pss_after_bytes"])
        return decode(RaceReport, output.read_bytes(), MAX_REPORT_BYTES), answer["race_s"]


@dataclass(frozen=True)
class Row:
    """The figures of one model over its repetitions; None where a candidate did not run here."""

    model: str
    race_s: list[float]
    placements: list[str]
    regret: list[float]
    regret_now: list[float]
    regret_of_one_block: list[float]
    same_again: list[float]  # A/A
    times_naive: float | None
    blocks: list[dict[str, float]]  # p50 in microseconds of each contender; one before the first race, one after each


def measure_block(model: Path, ids: Sequence[str], twin: str, rounds: int) -> tuple[Block, float]:
    """Return the samples of each contender, in new processes and interleaved turns, and the ratio of the twin."""
    with ExitStack() as stack:
        nurseries: dict[str, Nursery] = {}
        trials: list[Trial] = []
        for name in [*ids, twin]:
            candidate = parse_candidate_id(name)
            if candidate.runtime not in nurseries:
                nurseries[candidate.runtime] = stack.enter_context(Nursery(candidate.runtime))
            trial = Trial(candidate, TrialFiles(model), TrialLimits())
            if trial.open(nurseries[candidate.runtime]) and trial.time(TURN):
                trials.append(trial)
        for number in range(rounds):
            for trial in trials if number % 2 == 0 else reversed(trials):
                trial.time(TURN)
        for trial in trials:
            trial.retire()
    block = {trial.candidate.id: [us for turn in trial.rounds[1:] for us in turn] for trial in trials[:-1]}
    return block, p50([us for turn in trials[-1].rounds[1:] for us in turn]) / p50(block[twin])


def p50(samples: Sequence[float]) -> float:
    """Return the median of single inferences."""
    return percentile(sorted(samples), 0.5)


def bench(model: Path, control: Control, options: argparse.Namespace) -> Row | None:
    """Return the model's figures, or None when nothing could run it."""
    report, _ = control.race(model, options.threads)
    if report.placement is None:
        return None
    ids = [one.id for one in report.candidates if one.outcome in (Outcome.MEASURED, Outcome.DROPPED)]
    first, _ = measure_block(model, ids, report.placement, options.rounds)
    fastest = min(map(p50, first.values()))
    near = [name for name, samples in first.items() if p50(samples) <= NEAR * fastest or name == NAIVE]
    blocks: list[Block] = [{name: first[name] for name in near}]
    race_s: list[float] = []
    placements: list[str] = []
    same_again: list[float] = []
    for _ in range(options.repetitions):
        report, seconds = control.race(model, options.threads)
        if report.placement is None:
            raise SystemExit(f"a race of {model.name} placed nothing: {report.reason}")
        race_s.append(seconds)
        placements.append(report.placement)
        block, again = measure_block(
            model, list(dict.fromkeys([*near, report.placement])), placements[-1], options.rounds
        )
        blocks.append(block)
        same_again.append(again)
    around = [joined(pair) for pair in pairwise(blocks)]
    (usual, _), *_ = Counter(placements).most_common(1)
    overall = joined(blocks)
    return Row(
        model.name,
        race_s,
        placements,
        [regret(name, overall) for name in placements],
        [regret(name, block) for name, block in zip(placements, around, strict=True)],
        [regret(min(before, key=lambda name: p50(before[name])), after) for before, after in pairwise(blocks)],
        same_again,
        p50(overall[NAIVE]) / p50(overall[usual]) if NAIVE in overall else None,
        [{name: p50(samples) for name, samples in block.items()} for block in blocks],
    )


def joined(blocks: Sequence[Block]) -> Block:
    """Return the samples of several blocks together, of each contender in any of them."""
    names = dict.fromkeys(name for block in blocks for name in block)
    return {name: [us for block in blocks for us in block.get(name, ())] for name in names}


def regret(name: str, block: Block) -> float:
    """Return how many times the best contender's p50 this one's is."""
    return p50(block[name]) / min(map(p50, block.values()))


def line_of(row: Row) -> str:
    """Return a row of the table."""
    chosen = ", ".join(f"{name} {count}" for name, count in Counter(row.placements).most_common())
    farthest = max(row.same_again, key=lambda ratio: max(ratio, 1 / ratio))
    naive = "-" if row.times_naive is None else f"{row.times_naive:.2f}"
    return (
        f"{row.model:36} {median(row.race_s):6.1f} {max(row.race_s):6.1f}   {median(row.regret):6.3f} "
        f"{max(row.regret):6.3f}   {median(row.regret_now):6.3f} {max(row.regret_now):6.3f}   "
        f"{median(row.regret_of_one_block):6.3f} {max(row.regret_of_one_block):6.3f}   "
        f"{median(row.same_again):6.3f} "
        f"{farthest:6.3f}  {naive:>7}  {chosen}"
    )


def main() -> None:
    """Print one line a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--repetitions", type=int, default=20, help="races of each model (default: 20)")
    parser.add_argument("--rounds", type=int, default=20, help="interleaved rounds after each race (default: 20)")
    parser.add_argument("--threads", help="thread counts to race, for example 1,2 (default: as a race does)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there, too")
    options = parser.parse_args()
    options.threads = None if options.threads is None else tuple(map(int, options.threads.split(",")))
    models = options.models or [MODEL, *sorted(SHARED.rglob("*[!u].tflite"))]
    if not options.models and not SHARED.is_dir():
        print("the models of shared/data are not beside this checkout: only the shipped one is raced")
    machine = {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
        "load_1m": round(os.getloadavg()[0], 2),
        "repetitions": options.repetitions,
    }
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print(f"{'':36} {'RACE s':^13}   {'REGRET':^13}   {'RIGHT NOW':^13}   {'ONE BLOCK':^13}   {'A/A':^13}")
    two = f"{'med':>6} {'worst':>6}"
    print(f"{'MODEL':36} {two}   {two}   {two}   {two}   {two}  x NAIVE  PLACEMENTS")
    rows: list[Row] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            [sys.executable, CONTROL], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process,
    ):
        control = Control(process, Path(folder))
        for model in models:
            row = bench(model.resolve(), control, options)
            if row is None:
                print(f"{model.name:36} nothing here runs it")
                continue
            rows.append(row)
            print(line_of(row), flush=True)
    if control.pss_bytes:
        first, last = control.pss_bytes[0] / 1e6, control.pss_bytes[-1] / 1e6
        print(f"CONTROL {first:.2f} MB before the first race, {last:.2f} MB after {len(control.pss_bytes) - 1} races")
    if options.json is not None:
        table = {**machine, "control_pss_bytes": control.pss_bytes, "models": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
