"""The race: every way of running a model on this board, measured in processes of their own, and one placed.

`python -m regatta_runtimes.race SPEC.json --output REPORT.json` prints progress on stdout and ends with status 0 and a
report even when nothing can be placed; the report says why. This process imports no numpy and no runtime.

When an earlier result may exist, the race asks for it by its key (racekey.py) before it measures, and measures only
what confirms that (confirm.py); without one, or when it does not hold here, it races in full. The program asks by the
line `key KEY`; it reads the answer from the specification's `prior_path` when its standard input ends.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib import resources
from pathlib import Path

from pydantic import Field

from regatta_protocol.codec import decode, encode
from regatta_protocol.durable import read_bounded, write_durably
from regatta_protocol.errors import RegattaError, Rejected
from regatta_protocol.ids import Digest, digest_of_file
from regatta_protocol.manifest import Policy
from regatta_protocol.measurement import BoardFacts, Outcome, PriorRace, RaceReport
from regatta_protocol.parent import die_with_parent
from regatta_protocol.values import Accuracy
from regatta_protocol.wire import Wire
from regatta_runtimes.board import probe_board
from regatta_runtimes.candidate import Candidate
from regatta_runtimes.delegates import read_delegates
from regatta_runtimes.enumerate import Entrant, default_threads, enumerate_candidates
from regatta_runtimes.errors import RuntimeMissing
from regatta_runtimes.fpga.overlay import OverlayFiles
from regatta_runtimes.fpga.turn import OverlayTurn
from regatta_runtimes.heat import Heats
from regatta_runtimes.job import Failed, Open
from regatta_runtimes.judge import Verdict, judge
from regatta_runtimes.nursery import DEFAULT_MEMORY_BYTES, Nursery, WorkerEnded
from regatta_runtimes.pareto import pareto_front
from regatta_runtimes.power.finder import open_sensor
from regatta_runtimes.power.sensor import UnknownPower
from regatta_runtimes.power.settings import PowerSettings
from regatta_runtimes.quarantine import Ledger, Quarantine, pair_of
from regatta_runtimes.racekey import KeyedVariant, race_key
from regatta_runtimes.rejudge import rejudge
from regatta_runtimes.reuse import Course, Reuse, reuse_prior
from regatta_runtimes.runtime import RUNTIMES, ModelFormat, format_of, runtime_facts
from regatta_runtimes.thermal import HeatReader
from regatta_runtimes.trial import Trial, TrialFiles, TrialLimits
from regatta_runtimes.yardstick import Yardstick, accuracy_floor

__all__ = ["RaceSpec", "RaceVariant", "main", "run_race"]

MAX_SPEC_BYTES = 1 << 20
_ANSWER_S = 15.0  # patience for the answer to a key; who is asked is bound to less (regatta_agent.racing)


class RaceVariant(Wire):
    """A file of the bundle; `accuracy` is what the fleet measured."""

    name: str
    path: str
    requires: tuple[str, ...] = ()
    overlay: OverlayFiles | None = None  # the same for all variants that have one
    precision: str | None = None
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
    power: PowerSettings = PowerSettings()
    threads: tuple[int, ...] | None = None  # default: 1, 2, 4 … all cores
    budget_s: float = Field(default=20.0, gt=0, le=3600)
    memory_bytes: int = Field(default=DEFAULT_MEMORY_BYTES, ge=64 << 20)  # of one worker
    runtimes: tuple[str, ...] = tuple(RUNTIMES)
    backends: dict[str, str] = Field(default_factory=dict)
    earlier: str | None = None  # the report of a race of this version here, under another policy (rejudge.py)
    delegate_files: tuple[str, ...] = Field(default=(), max_length=64)
    quarantine: Quarantine = Quarantine()  # of the races and deaths before this one
    fpga_reserved: str | None = None  # why no overlay may be loaded: the FPGA serves another model
    prior_path: str | None = None  # where the answer to the key lies once standard input has ended; None: do not ask


Consult = Callable[[Digest], PriorRace | None]
Nurseries = Mapping[str, Nursery]


def run_race(
    spec: RaceSpec, progress: Callable[[str], None] = lambda _line: None, consult: Consult | None = None
) -> RaceReport:
    """Return the report of a whole race, or of a confirmation run; nothing placed is a report too.

    Args:
        progress: told a line about each step.
        consult: asked for an earlier result by its key, before anything is measured.

    Raises:
        Rejected: when a delegate file is wrong.
    """
    begun = time.monotonic()
    rows = read_delegates((Path(file) for file in spec.delegate_files), Path(spec.sysroot), progress)
    board = probe_board(Path(spec.sysroot), rows)
    yardstick = _yardstick(spec)
    with ExitStack() as stack:
        sensor = open_sensor(spec.power, Path(spec.sysroot))  # now, for a smart plug tells its first figure later
        if not isinstance(sensor, UnknownPower):
            stack.callback(sensor.close)
        entrants = [Entrant(one.name, one.requires, _format(Path(one.path)), one.precision) for one in spec.variants]
        nurseries, reasons = _nurseries(spec, {entrant.model_format for entrant in entrants}, stack)
        known = _rejudged(spec, yardstick, board, nurseries)
        if known is not None:
            progress("the earlier race answers for the changed policy")
            return known
        turn = stack.enter_context(_turn(spec))
        turn.load(board, rows, spec.fpga_reserved, progress)
        threads = spec.threads or default_threads(board.cores)
        candidates, absent = enumerate_candidates(
            entrants, reasons, board, threads, rows, Path(spec.sysroot), turn.refusals
        )
        progress(f"{len(candidates)} candidates, {len(absent)} unavailable")
        digests = _Digests()
        reuse = Reuse()
        if consult is not None:
            working = {name: nurseries[name] for name, reason in reasons.items() if reason is None}
            key = _key(spec, board, candidates, threads, working, digests)
            course = Course(
                key=key,
                candidates=candidates,
                make_trials=lambda some: _trials(spec, some, nurseries, digests),
                nurseries=nurseries,
                policy=spec.policy,
                yardstick=yardstick,
                sensor=sensor,
                progress=progress,
            )
            reuse = reuse_prior(course, consult(key))
            if reuse.verdict is not None:
                judged = replace(reuse.verdict, candidates=(*reuse.verdict.candidates, *absent))
                return _after_turn(turn, _report(spec, board, judged, begun, nurseries, reuse))
        trials = _trials(spec, candidates, nurseries, digests)
        heats = Heats(
            trials,
            nurseries,
            spec.policy,
            yardstick,
            spec.budget_s,
            progress,
            HeatReader(Path(spec.sysroot)).read,
        )
        fault: str | None = None
        try:
            heats.qualify()
            heats.evaluate()
            heats.rounds()
            heats.weigh(sensor)
        except Rejected as err:
            fault = f"nothing can be placed: the bundle is at fault: {err}"
            for trial in trials:
                if trial.alive:
                    trial.end(Outcome.DROPPED, fault)
        results = [trial.result() for trial in trials] + absent
        for trial in trials:
            trial.retire()
    verdict = judge(results, spec.policy, yardstick.floor)
    if fault is not None:
        verdict = replace(verdict, reason=fault)
    return _after_turn(turn, _report(spec, board, verdict, begun, nurseries, reuse))


def _turn(spec: RaceSpec) -> OverlayTurn:
    """Return the race's turn at the FPGA, with the overlay of its variants."""
    overlay = next((variant.overlay for variant in spec.variants if variant.overlay is not None), None)
    return OverlayTurn(overlay, f"{spec.model}:{spec.version}", Path(spec.sysroot))


def _after_turn(turn: OverlayTurn, report: RaceReport) -> RaceReport:
    """Let the FPGA go, with the overlay that the placed candidate needs; return the report with what came of it."""
    placed = report.placed()
    told = turn.end(None if placed is None else placed.delegate)
    return report.model_copy(update={"conditions": {**report.conditions, **told}})


def _report(
    spec: RaceSpec, board: BoardFacts, verdict: Verdict, begun: float, nurseries: Nurseries, reuse: Reuse
) -> RaceReport:
    """Return the report of a verdict, which came of a confirmation when `reuse` holds one."""
    confirmed = reuse.verdict is not None
    conditions = _conditions(board, probe_board(Path(spec.sysroot)), nurseries)
    return RaceReport(
        model=spec.model,
        version=spec.version,
        board=board,
        candidates=verdict.candidates,
        pareto=pareto_front(verdict.candidates),
        placement=verdict.placement,
        reason=verdict.reason if reuse.doubt is None else f"{verdict.reason}; raced in full: {reuse.doubt}",
        objective=verdict.objective,
        policy=spec.policy,
        duration_s=round(time.monotonic() - begun, 3),
        conditions=conditions if reuse.doubt is None else {**conditions, "prior": reuse.doubt},
        key=reuse.key,
        basis="confirmed" if confirmed else "full",
        prior=reuse.origin if confirmed else None,
    )


def _key(
    spec: RaceSpec,
    board: BoardFacts,
    candidates: Sequence[Candidate],
    threads: Sequence[int],
    working: Nurseries,
    digests: _Digests,
) -> Digest:
    """Return the key of this race, from the files as they lie on disk.

    Raises:
        Rejected: when a file of the bundle cannot be read.
    """
    taking_part = {candidate.variant for candidate in candidates}
    return race_key(
        [
            KeyedVariant(variant.name, digests.of(Path(variant.path)), variant.requires, _overlay_key(variant, digests))
            for variant in spec.variants
            if variant.name in taking_part
        ],
        golden=None if spec.golden is None else digests.of(Path(spec.golden)),
        evaluation=None if spec.evaluation is None else digests.of(Path(spec.evaluation)),
        board=board,
        libraries={
            f"{one.drive} {json.dumps(one.plugin.options, sort_keys=True)}": _library_digest(one, digests) or ""
            for one in candidates
            if one.plugin is not None
        },
        runtimes={name: nursery.runtime_version for name, nursery in working.items()},
        threads=threads,
    )


def _overlay_key(variant: RaceVariant, digests: _Digests) -> tuple[str, ...]:
    """Return what the variant's figures depend on in the FPGA."""
    overlay = variant.overlay
    if overlay is None:
        return ()
    tree = () if overlay.device_tree is None else (digests.of(Path(overlay.device_tree)),)
    return (digests.of(Path(overlay.bitstream)), f"{overlay.flags:x}", *tree)


def _rejudged(
    spec: RaceSpec, yardstick: Yardstick, board: BoardFacts, nurseries: dict[str, Nursery]
) -> RaceReport | None:
    """Return the earlier race as judged by this policy, where it was run on what is here now and answers."""
    if spec.earlier is None:
        return None
    try:
        report = decode(RaceReport, read_bounded(Path(spec.earlier), MAX_SPEC_BYTES), MAX_SPEC_BYTES)
    except (RegattaError, OSError):
        return None  # gone or damaged: the race tells what it would have
    then, now = report.board, {f"{name}_version": nursery.runtime_version for name, nursery in nurseries.items()}
    same = (
        (report.model, report.version) == (spec.model, spec.version)
        and then.fingerprint_text() == board.fingerprint_text()
        and (then.kernel, then.drivers) == (board.kernel, board.drivers)
        and now == {name: value for name, value in report.conditions.items() if name.endswith("_version")}
    )
    return rejudge(report, spec.policy, yardstick.floor) if same else None


def _yardstick(spec: RaceSpec) -> Yardstick:
    """Return what accuracies are held to, before anything is evaluated."""
    known = {variant.name: variant.accuracy for variant in spec.variants if variant.accuracy is not None}
    best = max((accuracy.value for accuracy in known.values()), default=0.0)
    favored = frozenset(name for name, accuracy in known.items() if accuracy.value == best)
    return Yardstick(accuracy_floor(known.values(), spec.policy), spec.policy, favored)


def _nurseries(
    spec: RaceSpec, formats: set[ModelFormat], stack: ExitStack
) -> tuple[dict[str, Nursery], dict[str, str | None]]:
    """Return the runtimes of the formats that can be used here, and for each runtime None or why it cannot."""
    nurseries: dict[str, Nursery] = {}
    reasons: dict[str, str | None] = {}
    for runtime in dict.fromkeys((*spec.runtimes, *spec.backends)):
        if runtime_facts(runtime).model_format not in formats:
            continue
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
    facts = runtime_facts(nursery.runtime)
    with resources.as_file(resources.files("regatta_runtimes") / facts.probe) as path:
        worker = nursery.start()
        try:
            answer = worker.ask(
                Open(candidate_id=f"{nursery.runtime}/probe/{facts.plain}/t1", model_path=str(path)), 20.0
            )
        except WorkerEnded as err:
            return f"{nursery.runtime} is installed, but its worker {err.reason}"
        finally:
            worker.close()
    if isinstance(answer, Failed):
        return f"{nursery.runtime} is installed, but cannot run the smallest model: {answer.reason}"
    return None


def _trials(spec: RaceSpec, candidates: Sequence[Candidate], nurseries: Nurseries, digests: _Digests) -> list[Trial]:
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
    ledger = Ledger(spec.quarantine)
    return [
        Trial(
            candidate,
            TrialFiles(paths[candidate.variant], golden, evaluation),
            limits,
            pair=pair_of(
                candidate,
                _library_digest(candidate, digests),
                nurseries[candidate.runtime].runtime_version,
                digests.of(paths[candidate.variant]),
            ),
            ledger=ledger,
        )
        for candidate in candidates
    ]


def _library_digest(candidate: Candidate, digests: _Digests) -> Digest | None:
    """Return the digest of the library that the candidate loads; None when the runtime brings the delegate."""
    library = candidate.plugin.library if candidate.plugin is not None else None
    return None if library is None else digests.of(Path(library))


def _format(path: Path) -> ModelFormat:
    """Return the model file's format.

    Raises:
        Rejected: when it cannot be read.
    """
    try:
        return format_of(path)
    except OSError as err:
        raise Rejected(f"{path} cannot be read: {err.strerror}") from err


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


def _conditions(before: BoardFacts, after: BoardFacts, nurseries: Nurseries) -> dict[str, str]:
    """Return what a reader of the figures should know about their circumstances."""
    conditions = {f"{name}_version": nursery.runtime_version for name, nursery in nurseries.items()}
    conditions["load_1m"] = f"{os.getloadavg()[0]:.2f}"
    if before.temperature_c is not None and after.temperature_c is not None:
        conditions["temperature_c"] = f"{before.temperature_c:.1f} to {after.temperature_c:.1f}"
    return conditions


def _ask(key: Digest, path: Path, say: Callable[[str], None]) -> PriorRace | None:
    """Ask who started this program for an earlier result; None when there is none, or none that can be read."""
    say(f"key {key}")
    ended, _, _ = select.select([sys.stdin], [], [], _ANSWER_S)  # nothing is ever written there: it only ends
    if not ended or not path.exists():
        return None
    try:
        return decode(PriorRace, read_bounded(path, MAX_SPEC_BYTES), MAX_SPEC_BYTES)
    except (RegattaError, OSError) as err:
        say(f"the earlier result is unreadable: {err}")
        return None


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
        path = spec.prior_path
        consult = None if path is None else lambda key: _ask(key, Path(path), say)
        report = run_race(spec, say, consult)
        write_durably(options.output, encode(report, MAX_SPEC_BYTES), 0o644)
    except (RegattaError, OSError) as err:
        sys.stderr.write(f"race failed: {err}\n")
        return err.exit_code if isinstance(err, RegattaError) else 1
    say(report.reason)
    return 0


if __name__ == "__main__":
    sys.exit(main())
