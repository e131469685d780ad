"""Evaluates a variant: its answers beside the float model's, and what it measures in each runtime.

Models run in child processes only. A runtime that is not installed here is noted, not an error.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from regatta_fleet.optimize.steps import Answers, run_step
from regatta_protocol.errors import Rejected
from regatta_protocol.measurement import CandidateResult
from regatta_runtimes.candidate import Candidate
from regatta_runtimes.worker.measure import measure_file

__all__ = ["RUNTIMES", "answers_of", "measure_variant"]

# The first gives the latency that is compared. tflite-runtime's XNNPACK takes no node of an int8 model.
RUNTIMES = (("litert", "xnnpack"), ("tflite", "none"))


def answers_of(model: Path, samples: Path) -> npt.NDArray[np.float32]:
    """Return the real values of output 0, float32 [n, …], on the samples.

    Raises:
        Rejected: when the file does not run, or answers with NaN or infinity.
    """
    with tempfile.TemporaryDirectory(prefix="regatta-answers-") as folder:
        output = Path(folder) / "answers.npz"
        run_step(Answers(model=str(model), samples=str(samples), output=str(output)))
        with np.load(output, allow_pickle=False) as arrays:
            answers: npt.NDArray[np.float32] = arrays["out"]
    if not np.isfinite(answers).all():
        raise Rejected(f"{model.name} answers with NaN or infinity on the samples")
    return answers


def measure_variant(name: str, model: Path, golden: Path) -> tuple[CandidateResult, ...]:
    """Return what the file measures on one thread in each runtime."""
    return tuple(
        measure_file(Candidate(runtime, name, delegate, 1), model, golden=golden) for runtime, delegate in RUNTIMES
    )
