"""A child process with limits for what must not run in ours: models, training and user's code.

`run_module` starts `python -m MODULE SPEC ANSWER PARENT MEMORY`, waits, and returns its answer; `serve` is the child's
side. A crash, a hang or memory without end ends the child, and whatever it started, and becomes an error that says what
was being done. The child dies with its parent. Nothing here knows what is run.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

from regatta_protocol.codec import MAX_INFLATED_BYTES, decode, encode
from regatta_protocol.durable import read_bounded, write_durably
from regatta_protocol.errors import Misuse, Rejected, Retryable
from regatta_protocol.parent import die_with_parent
from regatta_protocol.wire import Wire

__all__ = ["DEFAULT_MEMORY_BYTES", "ChildAnswer", "Progress", "run_module", "serve", "tell_parent"]

Progress = Callable[[str, float], None]

_MAX_LOG_BYTES = 4096
# The least-squares problems here are many and small: with two OpenBLAS threads, pruning digits took 2.0 s, not 1.4.
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
_POLL_S = 0.2  # between looks at what a child tells
_MAX_TOLD_BYTES = 4096
_told_to: Path | None = None  # in a child: where `tell_parent` writes
DEFAULT_MEMORY_BYTES = 8 * 1024**3  # address space of a child, most of it reserved and never touched


class ChildAnswer(Wire):
    """What a child answers; `family` is set when it failed."""

    family: Literal["rejected", "retryable", "misuse"] | None = None
    reason: str | None = None


S = TypeVar("S", bound=Wire)
A = TypeVar("A", bound=ChildAnswer)


def run_module(
    module: str,
    spec: Wire,
    answer: type[A],
    *,
    what: str,
    timeout_s: float,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    progress: Progress | None = None,
) -> A:
    """Return what the module's `serve` answered.

    Args:
        what: what it does, as the subject of a sentence: errors begin with it.
        memory_bytes: address space that it may take.
        progress: told what the child tells by `tell_parent`, now and then.

    Raises:
        Rejected: when it refuses its input, or crashes, hangs or runs out of memory on it.
        Retryable: when it could not be done now (disk full).
        Misuse: when something is not installed.
    """
    with tempfile.TemporaryDirectory(prefix="regatta-step-") as folder:
        asked, answered, log = (Path(folder) / name for name in ("spec.json", "answer.json", "log"))
        asked.write_bytes(encode(spec, MAX_INFLATED_BYTES))
        command = [sys.executable, "-m", module, str(asked), str(answered), str(os.getpid()), str(memory_bytes)]
        with log.open("wb") as out:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**_ONE_THREAD, **os.environ},
            )
            try:
                code = _wait(child, timeout_s, answered.with_suffix(".told"), progress)
            except subprocess.TimeoutExpired as err:
                raise Rejected(f"{what} took over {timeout_s:.0f} s and was ended") from err
            finally:
                _end(child)
        if not answered.is_file():
            raise Rejected(f"{what} {_ending(code)}: {_tail(log)}")
        result = decode(answer, read_bounded(answered, MAX_INFLATED_BYTES), MAX_INFLATED_BYTES)
    _raise_for(result, what)
    return result


def serve(arguments: list[str], kind: type[S], run: Callable[[S], ChildAnswer], what: Callable[[S], str]) -> int:
    """Do what the parent asks, and write the answer; 0 when one was written.

    Args:
        arguments: SPEC ANSWER PARENT MEMORY.
        what: names the work in an error about memory.
    """
    spec, answer, parent, memory_bytes = Path(arguments[0]), Path(arguments[1]), int(arguments[2]), int(arguments[3])
    global _told_to
    _told_to = answer.with_suffix(".told")
    die_with_parent(parent)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    asked = decode(kind, read_bounded(spec, MAX_INFLATED_BYTES), MAX_INFLATED_BYTES)
    try:
        result = run(asked)
    except Rejected as err:
        result = ChildAnswer(family="rejected", reason=str(err))
    except (Retryable, OSError) as err:
        result = ChildAnswer(family="retryable", reason=str(err))
    except Misuse as err:
        result = ChildAnswer(family="misuse", reason=str(err))
    except MemoryError:
        reason = f"{what(asked)} needs over {memory_bytes / 1024**3:g} GiB of memory: give it less to do"
        result = ChildAnswer(family="rejected", reason=reason)
    write_durably(answer, encode(result, MAX_INFLATED_BYTES))
    return 0


def tell_parent(message: str, share: float) -> None:
    """In a child: say how far it is, for whoever waits. Cheap enough to call often; only the last word is heard."""
    if _told_to is None:
        return
    beside = _told_to.with_suffix(".telling")
    with contextlib.suppress(OSError):  # a full disk shall stop the work, not the talk about it
        beside.write_text(json.dumps([message[:200], share]))
        beside.replace(_told_to)


def _wait(child: subprocess.Popen[bytes], timeout_s: float, told: Path, progress: Progress | None) -> int:
    if progress is None:
        return child.wait(timeout_s)
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return child.wait(min(_POLL_S, max(deadline - time.monotonic(), 0)))
        except subprocess.TimeoutExpired:
            if time.monotonic() >= deadline:
                raise
        with contextlib.suppress(OSError, ValueError, TypeError):  # it may say nothing yet, or anything
            message, share = json.loads(read_bounded(told, _MAX_TOLD_BYTES))
            progress(str(message), float(share))


def _raise_for(result: ChildAnswer, what: str) -> None:
    if result.family == "rejected":
        raise Rejected(result.reason or f"{what} was refused")
    if result.family == "retryable":
        raise Retryable(result.reason or f"{what} failed for now")
    if result.family == "misuse":
        raise Misuse(result.reason or f"{what} cannot run here")


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the child and whatever it started."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return
    finally:
        child.wait()


def _ending(code: int) -> str:
    if code < 0:
        return f"crashed with signal {signal.Signals(-code).name}"
    return f"ended with status {code}"


def _tail(log: Path) -> str:
    data = log.read_bytes()[-_MAX_LOG_BYTES:]
    lines = [line for line in data.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:400] if lines else "it said nothing"
