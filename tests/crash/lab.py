"""The crash lab: kills the agent with SIGKILL at every call that changes the disk, and checks what is left.

    ./run crashlab [--points N] [--seed S] [--point K]

An update (update.py) is recorded once under strace; each successful call that changes the disk is a point. For each
point the same update runs again in a fresh process, which strace kills on entry of that very call; then another
process, without strace, starts the agent on what was left and checks it. A point is known by its seed and its number,
both of which a violation is printed with. The update is the same each time but for the kill: a run that did other
calls before it than the recording is an error of the lab, as is one that was not killed.

What this does not see: a power cut (content that was written and not synced is still there after a SIGKILL), and a
write torn in its middle.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

sys.path[:0] = [str(Path(__file__).parents[1])]  # when called as a program

from crash import update  # noqa: E402

_CALLS = (
    "write pwrite64 writev pwritev rename renameat renameat2 fsync fdatasync unlink unlinkat rmdir truncate ftruncate "
    "mkdir mkdirat symlink symlinkat link linkat"
)  # "?" before a name: not every processor has them all
_LINE = re.compile(r"^\d+ +(?P<call>\w+)\((?P<what>.*)\) += (?P<result>-?\d+|\?)")
_PR_SET_PTRACER = 0x59616D61  # linux/prctl.h; without Yama the call fails, and is not needed
_PR_SET_PTRACER_ANY = ctypes.c_ulong(-1).value
_TOO_LONG_S = 120
BUG_VARIABLE = "CRASHLAB_BUG"  # environment: one of update.BUGS, for the lab's own test


class LabError(Exception):
    """The lab itself does not do what it says."""


@dataclass(frozen=True)
class Point:
    """One moment of one update."""

    seed: int
    number: int  # from 0, among the points of the seed
    call: str
    nth: int  # of this call, as strace counts: from 1
    before: tuple[str, ...]  # every traced call up to this one, which is the last

    def __str__(self) -> str:
        return f"seed {self.seed} point {self.number} ({self.call} {self.nth})"


def record(seed: int, folder: Path) -> list[Point]:
    """Run the update of the seed to its end and return its points."""
    _heard, log, killed = _traced(folder, seed, [])
    if killed:
        raise LabError(f"the update of seed {seed} was killed while it was recorded")
    points: list[Point] = []
    counts: Counter[str] = Counter()
    names = tuple(call for call, _result in log)
    for index, (call, result) in enumerate(log):
        counts[call] += 1
        if not result.startswith("-"):  # one that failed changed nothing
            points.append(Point(seed, len(points), call, counts[call], names[: index + 1]))
    return points


def hit(point: Point, folder: Path) -> str | None:
    """Kill the update at the point and start again; return the broken promise, or None."""
    heard, log, killed = _traced(folder, point.seed, ["-e", f"inject={point.call}:signal=KILL:when={point.nth}"])
    if not killed:
        raise LabError(f"{point}: the kill did not happen")
    if tuple(call for call, _result in log) != point.before:
        raise LabError(f"{point}: the update did other calls than when it was recorded")

    def come_back(tell: update.Tell) -> None:
        try:
            known = update.Heard()
            for line in heard:
                known.hear(line)
            update.come_back(folder, point.seed, known)
        except update.Violation as err:
            tell(str(err))

    pid, ours = _fork(come_back)
    said = _read_lines(ours)
    if os.waitpid(pid, 0)[1] != 0:
        return "the agent does not come back: " + " ".join(said[-1:])
    return said[0] if said else None


def obstacle() -> str | None:
    """Return why nothing can be traced here, or None."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    if os.geteuid() != 0 and scope.exists() and scope.read_text().strip() in ("2", "3"):
        return f"{scope} lets nobody but root attach"
    tried = subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, text=True, check=False)
    return f"strace may not trace here: {tried.stderr.strip()}" if tried.returncode else None


def _traced(folder: Path, seed: int, injection: list[str]) -> tuple[list[str], list[tuple[str, str]], bool]:
    """Run the update under strace; return what was told, the calls with their results, and whether it was killed.

    strace attaches to a fork of this process, so that no interpreter starts under it and no call before the update
    counts.
    """
    log = folder.with_suffix(".strace")
    gate, theirs = socket.socketpair()

    def work(tell: update.Tell) -> None:
        ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(_PR_SET_PTRACER_ANY))  # strace is no parent of ours
        theirs.send(b"r")
        theirs.recv(1)
        update.install_and_upgrade(folder, seed, tell, os.environ.get(BUG_VARIABLE))

    pid, ours = _fork(work)
    gate.settimeout(_TOO_LONG_S)
    gate.recv(1)
    calls = ",".join(f"?{call}" for call in _CALLS.split())
    command = ["strace", "-f", "-o", str(log), "-e", f"trace={calls}", "-e", "signal=KILL", *injection, "-p", str(pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr is not None
        greeting = strace.stderr.readline()
        if "attached" not in greeting:
            os.kill(pid, signal.SIGKILL)
            raise LabError(f"strace did not attach: {greeting.strip()}")
        gate.send(b"g")
        heard = _read_lines(ours)
        status = os.waitpid(pid, 0)[1]
    gate.close()
    theirs.close()
    if status and not os.WIFSIGNALED(status):
        raise LabError(f"the update of seed {seed} failed: {heard[-1:]}")
    lines = log.read_text(errors="replace").splitlines()
    log.unlink()
    found = [match for match in map(_LINE.match, lines) if match]
    killed = bool(lines) and lines[-1].endswith("+++ killed by SIGKILL +++")
    return heard, [(match["call"], match["result"]) for match in found], killed


def _fork(work: Callable[[update.Tell], None]) -> tuple[int, socket.socket]:
    """Run `work` in a fork; return its id and where its lines are read. What it tells is no traced call (sendto)."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid:
        theirs.close()
        return pid, ours
    status = 1
    try:
        ours.close()
        signal.alarm(_TOO_LONG_S)
        logging.disable()
        work(lambda line: theirs.sendall(line.encode() + b"\n"))
        status = 0
    except BaseException:  # noqa: BLE001 - whatever it is, it is said to the parent, and the fork ends here
        theirs.sendall(traceback.format_exc()[-600:].replace("\n", " | ").encode() + b"\n")
    finally:
        os._exit(status)


def _read_lines(ours: socket.socket) -> list[str]:
    with ours, ours.makefile("rb") as stream:
        return [line.decode().rstrip("\n") for line in stream]


def _chosen(first: int, wanted: int | None, number: int | None, folder: Path) -> Iterator[Point]:
    """Yield the points to hit: one, a spread sample of the first seed's, or all of as many seeds as it takes."""
    left = wanted
    for seed in itertools.count(first):
        points = record(seed, folder / f"recorded-{seed}")
        print(f"crashlab: the update of seed {seed} has {len(points)} points", file=sys.stderr)
        if number is not None:
            if not 0 <= number < len(points):
                raise SystemExit(
                    f"crashlab: --point {number}: the update of seed {seed} has points 0 to {len(points) - 1}"
                )
            yield points[number]
            return
        if left is not None and left < len(points):
            points = sorted(Random(seed).sample(points, left), key=lambda point: point.number)
        yield from points
        left = left - len(points) if left is not None else 0
        if left <= 0:
            return


def main() -> int:
    """Run the lab; return 1 when there were violations."""
    parser = argparse.ArgumentParser(prog="crashlab", description="Kill the agent everywhere and see what is left.")
    parser.add_argument("--points", type=int, help="how many (default: every point of one update)")
    parser.add_argument("--seed", type=int, default=1, help="of the first update (default: 1)")
    parser.add_argument("--point", type=int, help="only this one of the seed")
    asked = parser.parse_args()
    if asked.points is not None and asked.points < 1:
        parser.error(f"--points {asked.points}: ask for at least one")
    reason = obstacle()
    if reason is not None:
        print(f"crashlab: {reason}", file=sys.stderr)
        return 2
    hits = violations = 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="crashlab-") as name:
        folder = Path(name)
        for point in _chosen(asked.seed, asked.points, asked.point, folder):
            place = folder / "d"
            broken = hit(point, place)
            hits += 1
            shutil.rmtree(place, ignore_errors=True)
            if broken is not None:
                violations += 1
                print(
                    f"{point}: {broken}; again: ./run crashlab --seed {point.seed} --point {point.number}", flush=True
                )
    print(f"crashlab: {hits / (time.monotonic() - began):.1f} points a second", file=sys.stderr)
    print(f"{hits} points hit, {violations} violations")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
