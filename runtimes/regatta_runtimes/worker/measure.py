"""Measures one model file with one candidate, in a worker process: for the optimizer, and for whoever asks by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from regatta_protocol.measurement import CandidateResult, Outcome
from regatta_runtimes.candidate import Candidate
from regatta_runtimes.errors import RuntimeMissing
from regatta_runtimes.worker.job import Time
from regatta_runtimes.worker.nursery import Nursery
from regatta_runtimes.worker.trial import Trial, TrialFiles, TrialLimits

__all__ = ["measure_file"]

_ROUND = Time(budget_s=0.05, min_samples=2, max_samples=400, warmup=1)
_MAX_ROUNDS = 12  # half a second and a bit for a fast model, half of them usually


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
                and _time_until_steady(trial)
                and evaluation is not None
            ):
                trial.evaluate(timeout_s / 2)
            trial.retire()
    except RuntimeMissing as err:
        trial.end(Outcome.UNAVAILABLE, str(err))
    return trial.result()


def _time_until_steady(trial: Trial) -> bool:
    """Time it in rounds until they are steady (steady.py) or there were enough; return whether that worked."""
    for _ in range(_MAX_ROUNDS):
        if trial.is_steady():
            break
        if not trial.time(_ROUND):
            return False
    return trial.keeps_memory()
