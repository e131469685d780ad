"""The proof that the shim sees every call that changes the disk: strace's list of them is the same.

strace attaches to a fork of this process, so that no interpreter starts under it and no call before the story counts.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

from crash.case import Case, LabError
from crash.forks import Tell, fork
from crash.shim import CHANGES

__all__ = ["check_against_strace", "obstacle"]

_CALLS = (
    "write pwrite64 writev pwritev rename renameat renameat2 fsync fdatasync unlink unlinkat rmdir truncate ftruncate "
    "mkdir mkdirat symlink symlinkat link linkat"
)  # "?" before a name: not every processor has them all
_LINE = re.compile(r"^\d+ +(?P<call>\w+)\((?P<what>.*)\) += (?P<result>-?\d+|\?)")
_PR_SET_PTRACER = 0x59616D61  # linux/prctl.h; without Yama the call fails, and is not needed
_PR_SET_PTRACER_ANY = ctypes.c_ulong(-1).value
_TOO_LONG_S = 120


def obstacle() -> str | None:
    """Return why nothing can be traced here, or None."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    if os.geteuid() != 0 and scope.exists() and scope.read_text().strip() in ("2", "3"):
        return f"{scope} lets nobody but root attach"
    tried = subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, text=True, check=False)
    return f"strace may not trace here: {tried.stderr.strip()}" if tried.returncode else None


def check_against_strace(case: Case) -> int:
    """Run the story once under strace; return how many calls it made that change the disk.

    Raises:
        LabError: when strace saw others than the shim, in kind or number.
    """
    ours = [call.kind.name.lower() for call in case.recording.calls if call.kind in CHANGES]
    theirs = [_plain(match["call"]) for match in map(_LINE.match, _traced(case)) if match and _is_below(case, match)]
    if ours != theirs:
        both = enumerate(zip(ours, theirs, strict=False))
        at = next((number for number, (one, other) in both if one != other), min(len(ours), len(theirs)))
        raise LabError(
            f"{case}: the shim saw {len(ours)} calls that change the disk and strace {len(theirs)}; from number {at}: "
            f"{ours[at : at + 3]} and {theirs[at : at + 3]}"
        )
    return len(ours)


def _traced(case: Case) -> list[str]:
    case.lay_out()
    log = case.place.with_suffix(".strace")
    gate, theirs = socket.socketpair()

    def work(tell: Tell) -> None:
        ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(_PR_SET_PTRACER_ANY))  # strace is no parent of ours
        theirs.send(b"r")
        theirs.recv(1)
        case.story(tell)

    traced = fork(work)
    gate.settimeout(_TOO_LONG_S)
    gate.recv(1)
    calls = ",".join(f"?{call}" for call in _CALLS.split())
    command = ["strace", "-f", "-yy", "-s", "0", "-o", str(log), "-e", f"trace={calls}", "-p", str(traced.pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={}) as strace:
        assert strace.stderr is not None
        greeting = strace.stderr.readline()
        gate.send(b"g")
        ended = traced.join()
    gate.close()
    theirs.close()
    if "attached" not in greeting or ended.status != 0:
        raise LabError(f"strace did not follow {case}: {greeting.strip()} {ended.error or ''}")
    lines = log.read_text(errors="replace").splitlines()
    log.unlink()
    return lines


def _is_below(case: Case, match: re.Match[str]) -> bool:
    return str(case.place) in match["what"]


def _plain(call: str) -> str:
    """Return the call's name as the shim has it, whatever the processor's variant."""
    return {"pwrite64": "pwrite", "ftruncate": "ftruncate"}.get(call, re.sub(r"at2?$", "", call))
