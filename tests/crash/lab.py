"""The crash lab: ends the agent everywhere, fails its calls, cuts its power, and checks what is left.

See docs/crashlab.md. This module is the command line; layers.py divides the work, case.py runs a story.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]  # when called as a program

from crash import check, shim  # noqa: E402
from crash.bugs import BUGS  # noqa: E402
from crash.case import Case, KnownState, LabError  # noqa: E402
from crash.layers import LAYERS, Job, Point, Result, divide, hit_all, hit_one  # noqa: E402
from crash.scenarios import SCENARIOS  # noqa: E402

BUG_VARIABLE = "CRASHLAB_BUG"  # environment: one of bugs.BUGS, for the lab's own test
_POINTS = 1000
_STATUS_VIOLATIONS, _STATUS_UNABLE, _STATUS_BROKEN = 1, 2, 70

_EPILOG = f"""layers:
  kill    SIGKILL on entry of every call that changes the disk
  random  SIGKILL after a random time
  error   a call fails (no space, I/O error, no descriptors, read-only, interrupted), once or for hours, or writes half
  cut     a power cut: writes, renames and deletions that were not synced are lost, kept in part or torn

scenarios:
{chr(10).join(f"  {one.name:<10}{one.about}" for one in SCENARIOS.values())}

exit status: {0} no violation; {_STATUS_VIOLATIONS} violations; {_STATUS_UNABLE} wrong usage, or it cannot work here
(gcc or strace is missing, or nothing may be traced); {_STATUS_BROKEN} the lab contradicts itself.

examples:
  ./run crashlab
  ./run crashlab --points 10000
  ./run crashlab --dir /var/tmp --layer kill
  ./run crashlab --layer cut --scenario update --points 500 --seed 7
  ./run crashlab --layer kill --scenario update --seed 1 --point 17
"""


def main() -> int:
    """Run the lab; return its exit status."""
    parser = _parser()
    asked = parser.parse_args()
    if asked.point is not None and (len(asked.layer or ()) != 1 or len(asked.scenario or ()) != 1):
        parser.error("--point is a number of one --layer and one --scenario: give both")
    if asked.points < 1 or asked.jobs < 1:
        parser.error("--points and --jobs: ask for at least one")
    reason = shim.build() or check.obstacle()
    if reason is not None:
        print(f"crashlab: {reason}", file=sys.stderr)
        return _STATUS_UNABLE
    if not shim.is_loaded():
        shim.reload()
    with tempfile.TemporaryDirectory(prefix="crashlab-", dir=asked.dir) as name:
        try:
            return _report(_results(asked, Path(name)), as_json=asked.json)
        except LabError as err:
            print(f"crashlab: {err}", file=sys.stderr)
            return _STATUS_BROKEN


def _default_folder() -> Path:
    """Return a folder in memory where there is one: a point there costs a third, and what it leaves is the same."""
    memory = Path("/dev/shm")
    return memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="crashlab",
        description="End the agent everywhere and see what is left.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--points", type=int, default=_POINTS, help=f"how many in all (default: {_POINTS})")
    parser.add_argument(
        "--seed", type=int, default=1, help="the first (default: 1); more are taken as points need them"
    )
    parser.add_argument("--layer", action="append", choices=tuple(LAYERS), help="only this; may be repeated")
    parser.add_argument("--scenario", action="append", choices=tuple(SCENARIOS), help="only this; may be repeated")
    parser.add_argument("--point", type=int, help="only this one, as a violation names it")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")
    parser.add_argument("--dir", type=Path, default=_default_folder(), help="where to work (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead")
    return parser


def _results(asked: argparse.Namespace, folder: Path) -> Iterator[Result]:
    """Yield what comes of each point asked for."""
    bug = os.environ.get(BUG_VARIABLE) or None
    if bug is not None and bug not in BUGS:
        raise LabError(f"{BUG_VARIABLE}={bug}: the bugs are {', '.join(BUGS)}")
    if asked.point is not None:
        point = Point(asked.layer[0], asked.scenario[0], asked.seed, asked.point)
        try:
            result = hit_one(point, folder, bug)
        except KnownState:
            raise LabError(f"{point}: nothing can be lost or torn at that call in that way") from None
        if result is None:
            raise LabError(f"there is no {point}")
        yield result
        return
    layers, scenarios = asked.layer or list(LAYERS), asked.scenario or list(SCENARIOS)
    jobs = divide(asked.points, asked.seed, layers, scenarios, bug)
    with multiprocessing.get_context("fork").Pool(asked.jobs) as pool:
        work = [(job, folder) for job in sorted(jobs, key=lambda job: -job.quota)]
        checks = [(scenario, asked.seed, folder) for scenario in scenarios]
        checked = pool.map_async(_check, checks, chunksize=1)
        for results in pool.imap_unordered(_work, work):
            yield from results
        calls = sum(checked.get())
    print(f"crashlab: strace saw the same {calls} calls that change the disk as the lab", file=sys.stderr)


def _work(what: tuple[Job, Path]) -> list[Result]:
    job, folder = what
    began = time.monotonic()
    results = list(hit_all(job, folder))
    took_s = time.monotonic() - began
    print(f"crashlab: {job.layer} {job.scenario}: {len(results)} points in {took_s:.0f} s", file=sys.stderr)
    return results


def _check(what: tuple[str, int, Path]) -> int:
    scenario, seed, folder = what
    return check.check_against_strace(Case(SCENARIOS[scenario], seed, folder / f"check-{scenario}", None))


def _report(results: Iterator[Result], *, as_json: bool) -> int:
    """Print the violations as they come and the count at the end; return the exit status."""
    began = time.monotonic()
    hits: Counter[str] = Counter()
    violations: list[Result] = []
    for result in results:
        hits[result.point.layer] += 1
        if result.violation is not None:
            violations.append(result)
            if not as_json:
                print(f"{result.point}: {result.violation}; again: {result.point.again}", flush=True)
    took_s = time.monotonic() - began
    if as_json:
        found = [one.as_json() for one in violations]
        print(json.dumps({"points": hits.total(), "layers": hits, "violations": found, "took_s": round(took_s, 1)}))
    else:
        print(", ".join(f"{layer} {count}" for layer, count in hits.items()) + f" in {took_s:.0f} s")
        print(f"{hits.total()} points hit, {len(violations)} violations")
    return _STATUS_VIOLATIONS if violations else 0


if __name__ == "__main__":
    sys.exit(main())
