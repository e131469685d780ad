"""The race: every way of running a model on this board, measured in processes of their own, and one placed.

`python -m regatta_runtimes.race.run SPEC.json --output REPORT.json` prints progress on stdout and ends with status 0
and a report even when nothing can be placed; the report says why. This process imports no numpy and no runtime.

When an earlier result may exist, the race asks for it by its key (key.py) before it measures, and measures only
what confirms that (confirm.py); without one, or when it does not hold here, it races in full. The program asks by the
line `key KEY`; it reads the answer from the specification's `prior_path` when its standard input ends.

Here is the order of a race and its report. What is raced is in spec.py and files.py, with which runtimes in
working_runtimes.py, the heats in heat.py, and who wins in choice/judge.py.
"""

from __future__ import annotations

import argparse
import os
import select
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from regatta_protocol.codec import decode, encode
from regatta_protocol.durable import read_bounded, write_durably
from regatta_protocol.errors import RegattaError, Rejected
from regatta_protocol.ids import Digest
from regatta_protocol.measurement import BoardFacts, CandidateResult, Outcome, PriorRace, RaceReport
from regatta_protocol.parent import die_with_parent
from regatta_runtimes.board.delegates import read_delegates
from regatta_runtimes.board.probe import probe_board
from regatta_runtimes.board.thermal import HeatReader
from regatta_runtimes.candidate import Candidate
from regatta_runtimes.choice.judge import Verdict, judge
from regatta_runtimes.choice.pareto import pareto_front
from regatta_runtimes.choice.rejudge import rejudge
from regatta_runtimes.choice.yardstick import Yardstick, accuracy_floor
from regatta_runtimes.fpga.turn import OverlayTurn
from regatta_runtimes.power.finder import open_sensor
from regatta_runtimes.power.sensor import PowerSensor, UnknownPower
from regatta_runtimes.race.enumerate import default_threads, enumerate_candidates
from regatta_runtimes.race.files import RaceFiles
from regatta_runtimes.race.heat import Heats
from regatta_runtimes.race.reuse import Course, Reuse, reuse_prior
from regatta_runtimes.race.spec import MAX_SPEC_BYTES, RaceSpec, RaceVariant
from regatta_runtimes.race.working_runtimes import open_nurseries
from regatta_runtimes.worker.nursery import Nursery

__all__ = ["RaceSpec", "RaceVariant", "main", "run_race"]

_ANSWER_S = 15.0  # patience for the answer to a key; who is asked is bound to less (regatta_agent.work.racing)

Consult = Callable[[Digest], PriorRace | None]
Nurseries = Mapping[str, Nursery]


@dataclass(frozen=True)
class _Field:
    """Who takes part in a race, and what they are held to."""

    spec: RaceSpec
    files: RaceFiles
    candidates: Sequence[Candidate]
    absent: Sequence[CandidateResult]  # who cannot take part, and why
    nurseries: Nurseries
    yardstick: Yardstick
    sensor: PowerSensor | UnknownPower
    progress: Callable[[str], None]


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
    begun, root = time.monotonic(), Path(spec.sysroot)
    rows = read_delegates((Path(file) for file in spec.delegate_files), root, progress)
    board = probe_board(root, rows)
    files, yardstick = RaceFiles(spec), _yardstick(spec)
    with ExitStack() as stack:
        sensor = open_sensor(spec.power, root)  # now, for a smart plug tells its first figure later
        if not isinstance(sensor, UnknownPower):
            stack.callback(sensor.close)
        entrants = files.entrants()
        nurseries, reasons = open_nurseries(spec, {entrant.model_format for entrant in entrants}, stack)
        known = _rejudged(spec, yardstick, board, nurseries)
        if known is not None:
            progress("the earlier race answers for the changed policy")
            return known
        turn = stack.enter_context(_turn(spec))
        turn.load(board, rows, spec.fpga_reserved, progress)
        threads = spec.threads or default_threads(board.cores)
        candidates, absent = enumerate_candidates(entrants, reasons, board, threads, rows, root, turn.refusals)
        progress(f"{len(candidates)} candidates, {len(absent)} unavailable")
        field = _Field(spec, files, candidates, absent, nurseries, yardstick, sensor, progress)
        reuse = Reuse()
        if consult is not None:
            working = {name: nurseries[name] for name, reason in reasons.items() if reason is None}
            reuse = _reused(field, files.key(board, candidates, threads, working), consult)
        verdict = reuse.verdict or _raced(field)
        report = _report(spec, board, verdict, begun, nurseries, reuse)
        placed = report.placed()
        told = turn.end(None if placed is None else placed.delegate)  # the overlay that the placed one needs stays
        return report.model_copy(update={"conditions": {**report.conditions, **told}})


def _turn(spec: RaceSpec) -> OverlayTurn:
    """Return the race's turn at the FPGA, with the overlay of its variants."""
    overlay = next((variant.overlay for variant in spec.variants if variant.overlay is not None), None)
    return OverlayTurn(overlay, f"{spec.model}:{spec.version}", Path(spec.sysroot))


def _reused(field: _Field, key: Digest, consult: Consult) -> Reuse:
    """Return what an earlier result with this key is worth here."""
    course = Course(
        key=key,
        candidates=field.candidates,
        make_trials=lambda some: field.files.trials(some, field.nurseries),
        nurseries=field.nurseries,
        policy=field.spec.policy,
        yardstick=field.yardstick,
        sensor=field.sensor,
        progress=field.progress,
    )
    reuse = reuse_prior(course, consult(key))
    if reuse.verdict is None:
        return reuse
    return replace(reuse, verdict=replace(reuse.verdict, candidates=(*reuse.verdict.candidates, *field.absent)))


def _raced(field: _Field) -> Verdict:
    """Return the verdict of a race in full."""
    spec = field.spec
    trials = field.files.trials(field.candidates, field.nurseries)
    heats = Heats(
        trials,
        field.nurseries,
        spec.policy,
        field.yardstick,
        spec.budget_s,
        field.progress,
        HeatReader(Path(spec.sysroot)).read,
    )
    fault: str | None = None
    try:
        heats.qualify()
        heats.evaluate()
        heats.rounds()
        heats.weigh(field.sensor)
    except Rejected as err:
        fault = f"nothing can be placed: the bundle is at fault: {err}"
        for trial in trials:
            if trial.alive:
                trial.end(Outcome.DROPPED, fault)
    results = [trial.result() for trial in trials]
    for trial in trials:
        trial.retire()
    verdict = judge([*results, *field.absent], spec.policy, field.yardstick.floor)
    return verdict if fault is None else replace(verdict, reason=fault)


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
    parser = argparse.ArgumentParser(prog="python -m regatta_runtimes.race.run", description=__doc__)
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
