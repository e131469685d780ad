"""The race: every way of running a model on this board, measured in processes of their own, and one placed.

`python -m regatta_runtimes.race SPEC.json --output REPORT.json` prints progress on stdout and ends with status 0 and a
report even when nothing can be placed; the report says why. This process imports no numpy and no runtime.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from importlib import resources
from pathlib import Path

from pydantic import Field

from regatta_protocol.codec import decode, encode
from regatta_protocol.durable import read_bounded, write_durably
from regatta_protocol.errors import RegattaError, Rejected
from regatta_protocol.ids import Digest, digest_of_file
from regatta_protocol.manifest import Policy
from regatta_protocol.measurement import Accuracy, BoardFacts, Outcome, RaceReport
from regatta_protocol.wire import Wire
from regatta_runtimes.board import probe_board
from regatta_runtimes.candidate import Candidate
from regatta_runtimes.delegates import read_delegates
from regatta_runtimes.enumerate import Entrant, default_threads, enumerate_candidates
from regatta_runtimes.errors import RuntimeMissing
from regatta_runtimes.fpga.files import OverlayFiles
from regatta_runtimes.fpga.turn import OverlayTurn
from regatta_runtimes.heat import Heats
from regatta_runtimes.job import Failed, Open
from regatta_runtimes.judge import accuracy_floor, judge
from regatta_runtimes.nursery import DEFAULT_MEMORY_BYTES, Nursery, WorkerEnded
from regatta_runtimes.parent import die_with_parent
from regatta_runtimes.power import find_sensor
from regatta_runtimes.quarantine import Ledger, Quarantine, pair_of
from regatta_runtimes.thermal import HeatReader
from regatta_runtimes.trial import Trial, TrialFiles, TrialLimits

__all__ = ["RaceSpec", "RaceVariant", "main", "run_race"]

MAX_SPEC_BYTES = 1 << 20
_RUNTIMES = ("litert", "tflite")  # in order of preference


class RaceVariant(Wire):
    """A file of the bundle; `accuracy` is what the fleet measured."""

    name: str
    path: str
    requires: tuple[str, ...] = ()
    overlay: OverlayFiles | None = None  # the same for all variants that have one
    accuracy: Accuracy | None = None


class RaceSpec(Wire):
    """What to race.

    `backends` adds runtimes: name -> module with open_session and version. `delegate_files` adds rows to the table of
    delegates (delegates.py).
    """

    model: str
    version: int
    variants: tuple[RaceVariant, ...] = Field(max_length=64)
    golden: str | None = None
    evaluation: str | None = None
    policy: Policy = Policy()
    sysroot: str = "/"
    threads: tuple[int, ...] | None = None  # default: 1, 2, 4 … all cores
    budget_s: float = Field(default=20.0, gt=0, le=3600)
    memory_bytes: int = Field(default=DEFAULT_MEMORY_BYTES, ge=64 << 20)  # of one worker
    runtimes: tuple[str, ...] = _RUNTIMES
    backends: dict[str, str] = Field(default_factory=dict)
    delegate_files: tuple[str, ...] = Field(default=(), max_length=64)
    quarantine: Quarantine = Quarantine()  # of the races and deaths before this one
    fpga_reserved: str | None = None  # why no overlay may be loaded: the FPGA serves another model


def run_race(spec: RaceSpec, progress: Callable[[str], None] = lambda _line: None) -> RaceReport:
    """Return the report of a whole race; nothing placed is a report too.

    Args:
        progress: told a line about each step.

    Raises:
        Rejected: when a delegate file is wrong.
    """
    begun = time.monotonic()
    rows = read_delegates((Path(file) for file in spec.delegate_files), Path(spec.sysroot), progress)
    board = probe_board(Path(spec.sysroot), rows)
    floor = accuracy_floor([variant.accuracy for variant in spec.variants], spec.policy)
    with ExitStack() as stack:
        nurseries, reasons = _nurseries(spec, stack)
        turn = stack.enter_context(_turn(spec))
        turn.load(board, rows, spec.fpga_reserved, progress)
        entrants = [
            Entrant(variant.name, variant.requires, None if variant.overlay is None else turn.refusal)
            for variant in spec.variants
        ]
        threads = spec.threads or default_threads(board.cores)
        candidates, absent = enumerate_candidates(entrants, reasons, board, threads, rows, Path(spec.sysroot))
        progress(f"{len(candidates)} candidates, {len(absent)} unavailable")
        trials = _trials(spec, candidates, nurseries)
        heats = Heats(
            trials,
            nurseries,
            spec.policy,
            floor,
            spec.budget_s,
            progress,
            HeatReader(Path(spec.sysroot)).read,
        )
        fault: str | None = None
        try:
            heats.qualify()
            heats.evaluate()
            heats.rounds()
            heats.weigh(find_sensor(Path(spec.sysroot)))
        except Rejected as err:
            fault = f"nothing can be placed: the bundle is at fault: {err}"
            for trial in trials:
                if trial.alive:
                    trial.end(Outcome.DROPPED, fault)
        results = [trial.result() for trial in trials] + absent
        for trial in trials:
            trial.retire()
        verdict = judge(results, spec.policy, floor, {trial.candidate.id: trial.noise() for trial in trials})
        placed = next((result for result in verdict.candidates if result.id == verdict.placement), None)
        fpga = turn.end(keep=placed is not None and _overlay_of(spec, placed.variant) is not None)
    after = probe_board(Path(spec.sysroot))
    return RaceReport(
        model=spec.model,
        version=spec.version,
        board=board,
        candidates=verdict.candidates,
        placement=verdict.placement,
        reason=fault or verdict.reason,
        objective=verdict.objective,
        duration_s=round(time.monotonic() - begun, 3),
        conditions={**_conditions(board, after, nurseries), **fpga},
    )


def _turn(spec: RaceSpec) -> OverlayTurn:
    """Return the race's turn at the FPGA, with the overlay of its variants."""
    overlay = next((variant.overlay for variant in spec.variants if variant.overlay is not None), None)
    return OverlayTurn(overlay, f"{spec.model}:{spec.version}", Path(spec.sysroot))


def _overlay_of(spec: RaceSpec, name: str) -> OverlayFiles | None:
    return next((variant.overlay for variant in spec.variants if variant.name == name), None)


def _nurseries(spec: RaceSpec, stack: ExitStack) -> tuple[dict[str, Nursery], dict[str, str | None]]:
    """Return the runtimes that can build an interpreter here, and for each runtime None or why it cannot."""
    nurseries: dict[str, Nursery] = {}
    reasons: dict[str, str | None] = {}
    for runtime in (*spec.runtimes, *(name for name in spec.backends if name not in spec.runtimes)):
        try:
            nursery = stack.enter_context(Nursery(runtime, spec.backends))
            reasons[runtime] = None if runtime in spec.backends else probe_runtime(nursery)
        except RuntimeMissing as err:
            reasons[runtime] = str(err)
            continue
        nurseries[runtime] = nursery
    return nurseries, reasons


def probe_runtime(nursery: Nursery) -> str | None:
    """Return None when the runtime builds and runs the smallest model, or why not.

    tflite-runtime under numpy 2 can be imported and fails here: importing proves nothing.
    """
    with resources.as_file(resources.files("regatta_runtimes") / "probe.tflite") as path:
        worker = nursery.start()
        try:
            answer = worker.ask(Open(candidate_id=f"{nursery.runtime}/probe/none/t1", model_path=str(path)), 20.0)
        except WorkerEnded as err:
            return f"{nursery.runtime} is installed, but its worker {err.reason}"
        finally:
            worker.close()
    if isinstance(answer, Failed):
        return f"{nursery.runtime} is installed, but cannot run the smallest model: {answer.reason}"
    return None


def _trials(spec: RaceSpec, candidates: list[Candidate], nurseries: Mapping[str, Nursery]) -> list[Trial]:
    """Return a trial for each candidate.

    Raises:
        Rejected: when a model file cannot be read.
    """
    paths = {variant.name: Path(variant.path) for variant in spec.variants}
    limits = TrialLimits(
        memory_bytes=spec.memory_bytes, open_s=max(3.0, spec.budget_s / 2), answer_s=max(3.0, spec.budget_s / 4)
    )
    golden = None if spec.golden is None else Path(spec.golden)
    evaluation = None if spec.evaluation is None else Path(spec.evaluation)
    digests = _Digests()
    ledger = Ledger(spec.quarantine)
    return [
        Trial(
            candidate,
            TrialFiles(paths[candidate.variant], golden, evaluation),
            limits,
            pair=pair_of(
                candidate,
                None if candidate.plugin is None else digests.of(Path(candidate.plugin.library)),
                nurseries[candidate.runtime].runtime_version,
                digests.of(paths[candidate.variant]),
            ),
            ledger=ledger,
        )
        for candidate in candidates
    ]


class _Digests:
    """Digests of files, each computed once."""

    def __init__(self) -> None:
        self._known: dict[Path, Digest] = {}

    def of(self, path: Path) -> Digest:
        """Return the digest of the file's content.

        Raises:
            Rejected: when it cannot be read.
        """
        if path not in self._known:
            try:
                self._known[path] = digest_of_file(path)
            except OSError as err:
                raise Rejected(f"{path} cannot be read: {err.strerror}") from err
        return self._known[path]


def _conditions(before: BoardFacts, after: BoardFacts, nurseries: dict[str, Nursery]) -> dict[str, str]:
    """Return what a reader of the figures should know about their circumstances."""
    conditions = {f"{name}_version": nursery.runtime_version for name, nursery in nurseries.items()}
    conditions["load_1m"] = f"{os.getloadavg()[0]:.2f}"
    if before.temperature_c is not None and after.temperature_c is not None:
        conditions["temperature_c"] = f"{before.temperature_c:.1f} to {after.temperature_c:.1f}"
    return conditions


def main(arguments: list[str] | None = None) -> int:
    """Run a race from a specification file; return the exit status."""
    die_with_parent(os.getppid())
    parser = argparse.ArgumentParser(prog="python -m regatta_runtimes.race", description=__doc__)
    parser.add_argument("spec", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)

    def say(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    try:
        spec = decode(RaceSpec, read_bounded(options.spec, MAX_SPEC_BYTES), MAX_SPEC_BYTES)
        report = run_race(spec, say)
        write_durably(options.output, encode(report, MAX_SPEC_BYTES), 0o644)
    except (RegattaError, OSError) as err:
        sys.stderr.write(f"race failed: {err}\n")
        return err.exit_code if isinstance(err, RegattaError) else 1
    say(report.reason)
    return 0


if __name__ == "__main__":
    sys.exit(main())
