"""The steps of an optimization that run models: each in a child process, since a model is code.

A crash, a hang or memory without end in a runtime ends the child and becomes an error that names the step. This module
is the typed front: it imports no runtime. `child.py` is what runs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal

from pydantic import Field

from regatta_fleet.optimize.quantize.schemes import Scheme
from regatta_fleet.optimize.report import LayerReport
from regatta_protocol.codec import MAX_INFLATED_BYTES, decode, encode
from regatta_protocol.durable import read_bounded
from regatta_protocol.errors import Misuse, Rejected, Retryable
from regatta_protocol.wire import Wire

__all__ = [
    "Answers",
    "Attempt",
    "Check",
    "Made",
    "ModelCost",
    "Prune",
    "Quantize",
    "Search",
    "Spec",
    "Step",
    "StepResult",
    "run_step",
]

_MAX_LOG_BYTES = 4096
# The least-squares problems here are many and small: with two OpenBLAS threads, pruning digits took 2.0 s, not 1.4.
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
_MEMORY_BYTES = 8 * 1024**3  # address space of a child, most of it reserved and never touched


class Check(Wire):
    """Check and normalize a float model, and count its work."""

    kind: Literal["check"] = "check"
    model: str
    samples: str | None = None
    output: str  # the normalized file


class Quantize(Wire):
    """Quantize a model in one way or several: `outputs` says where each file goes.

    A scheme that comes to the same file as another of them is left out of what was made.
    """

    kind: Literal["quantize"] = "quantize"
    model: str
    samples: str
    outputs: dict[Scheme, str] = Field(min_length=1, max_length=16)


class Search(Wire):
    """Find a precision for each layer: `samples` give the ranges and judge, as `compare.refusal` with `max_drop`."""

    kind: Literal["search"] = "search"
    model: str
    samples: str
    output: str
    max_drop: float = Field(ge=0, le=1)


class Prune(Wire):
    """Try shares of filters in turn, with a refit each, and write the first that keeps the accuracy.

    `samples` choose and refit; `held_back` judge, like `compare.refusal` with `max_drop`.
    """

    kind: Literal["prune"] = "prune"
    model: str
    samples: str
    held_back: str
    output: str
    shares: tuple[float, ...] = Field(min_length=1, max_length=64)
    max_drop: float = Field(ge=0, le=1)


class Answers(Wire):
    """Run a file over samples and write its real outputs: `out` float32 [n, …] of output 0."""

    kind: Literal["answers"] = "answers"
    model: str
    samples: str
    output: str


Step = Check | Quantize | Search | Prune | Answers


class Spec(Wire):
    """One step, as the child reads it."""

    step: Step = Field(discriminator="kind")


class ModelCost(Wire):
    """What a model is made of, by counting: multiply-accumulates of one inference, and weights."""

    macs: int
    weights: int


class Attempt(Wire):
    """A share of filters that was tried; `reason` says why it will not do."""

    share: float
    notes: tuple[str, ...]
    size_bytes: int
    cost: ModelCost
    reason: str | None = None


class Made(Wire):
    """A file that was quantized, or `reason` for none."""

    scheme: str
    notes: tuple[str, ...] = ()
    layers: tuple[LayerReport, ...] = ()
    reason: str | None = None


class StepResult(Wire):
    """What the child answers. `family` is set when it failed."""

    family: Literal["rejected", "retryable", "misuse"] | None = None
    reason: str | None = None
    cost: ModelCost | None = None
    made: tuple[Made, ...] = ()
    attempts: tuple[Attempt, ...] = ()


def run_step(step: Step, *, timeout_s: float = 120.0) -> StepResult:
    """Return what the step said; its files are written.

    Raises:
        Rejected: when the step refuses its input, or the runtime crashes, hangs or runs out of memory on it.
        Retryable: when it could not be done now (disk full).
        Misuse: when something is not installed.
    """
    with tempfile.TemporaryDirectory(prefix="regatta-step-") as folder:
        spec, answer, log = (Path(folder) / name for name in ("spec.json", "answer.json", "log"))
        spec.write_bytes(encode(Spec(step=step), MAX_INFLATED_BYTES))
        command = [sys.executable, "-m", "regatta_fleet.optimize.child", str(spec), str(answer)]
        command += [str(os.getpid()), str(_MEMORY_BYTES)]
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
                code = child.wait(timeout_s)
            except subprocess.TimeoutExpired as err:
                raise Rejected(f"step {step.kind} of {step.model} took over {timeout_s:.0f} s and was ended") from err
            finally:
                _end(child)
        if not answer.is_file():
            raise Rejected(f"step {step.kind} of {step.model} {_ending(code)}: {_tail(log)}")
        result = decode(StepResult, read_bounded(answer, MAX_INFLATED_BYTES), MAX_INFLATED_BYTES)
    _raise_for(result)
    return result


def _raise_for(result: StepResult) -> None:
    if result.family == "rejected":
        raise Rejected(result.reason or "the step was refused")
    if result.family == "retryable":
        raise Retryable(result.reason or "the step failed for now")
    if result.family == "misuse":
        raise Misuse(result.reason or "the step cannot run here")


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
