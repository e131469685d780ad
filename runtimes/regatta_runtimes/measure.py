"""Measures one model file with one candidate, in a worker process: for the optimizer, and for whoever asks by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from regatta_protocol.measurement import CandidateResult, Outcome
from regatta_runtimes.candidate import Candidate
from regatta_runtimes.errors import RuntimeMissing
from regatta_runtimes.job import Time
from regatta_runtimes.nursery import Nursery
from regatta_runtimes.trial import Trial, TrialFiles, TrialLimits

__all__ = ["measure_file"]

_TIMED_S = 0.5
_MIN_SAMPLES = 10
_MAX_SAMPLES = 2000
_WARMUP = 3


def measure_file(
    candidate: Candidate,
    model_path: Path,
    *,
    evaluation: Path | None = None,
    golden: Path | None = None,
    timeout_s: float = 60.0,
    backends: Mapping[str, str] | None = None,
) -> CandidateResult:
    """Return what the candidate measured on the file; a failure is an outcome with its reason, not an exception.

    The evaluation set is counted whole unless it takes over half of `timeout_s` (then `accuracy.total` is less).

    Raises:
        Rejected: when the golden or evaluation file is unreadable or does not fit the model.
    """
    limits = TrialLimits(open_s=timeout_s, answer_s=timeout_s)
    trial = Trial(candidate, TrialFiles(model_path, golden, evaluation), limits)
    try:
        with Nursery(candidate.runtime, backends) as nursery:
            if (
                trial.open(nursery)
                and (golden is None or trial.check(timeout_s / 10))
                and trial.time(
                    Time(budget_s=_TIMED_S, min_samples=_MIN_SAMPLES, max_samples=_MAX_SAMPLES, warmup=_WARMUP)
                )
                and evaluation is not None
            ):
                trial.evaluate(timeout_s / 2)
            trial.retire()
    except RuntimeMissing as err:
        trial.end(Outcome.UNAVAILABLE, str(err))
    return trial.result()
