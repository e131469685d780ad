"""The variants of an optimization that are trained: each made in a child process, judged, refused or kept.

int8-distilled   filters pruned where the output feels it least, distilled from the original, then int8
int8-trained     int8 by quantization-aware training
int4-trained     int4 weights by quantization-aware training
sparse           weights at 0, for places where files lie or travel compressed
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from regatta_fleet.optimize.steps import Attempt
from regatta_fleet.optimize.train.available import require_torch
from regatta_fleet.optimize.train.steps import Distill, Sparsify, TrainQuantized, run_training
from regatta_fleet.optimize.trials import TrainedName, Trial, Work, quantize_pruned, split_off
from regatta_protocol.errors import Rejected

__all__ = ["make_trained"]

# Of the multiply-accumulates, tried from the greatest; KWS (.932) keeps .920 at a quarter without labels.
_MAC_SHARES = (0.75, 0.625, 0.5, 0.375, 0.25)
_SPARSITIES = (0.7, 0.5, 0.3)


def make_trained(work: Work, wanted: Sequence[TrainedName]) -> list[Trial]:
    """Return every trained variant that was tried, of a model that was checked.

    Raises:
        Misuse: when PyTorch is not installed.
    """
    require_torch()
    makers: dict[TrainedName, Callable[[Work], list[Trial]]] = {
        "int8-distilled": _distilled,
        "int8-trained": lambda work: [_quantized(work, "int8-trained", "int8")],
        "int4-trained": lambda work: [_quantized(work, "int4-trained", "int4-weights")],
        "sparse": _sparse,
    }
    trials: list[Trial] = []
    for name in wanted:
        work.progress(f"training {name}", 0.55)
        trials += makers[name](work)
    return trials


def _quantized(work: Work, name: TrainedName, precision: Literal["int8", "int4-weights"]) -> Trial:
    path = work.path(f"{name}.tflite")
    trial = Trial(name, path, ("quantization-aware training",), macs=work.macs)
    step = TrainQuantized(
        model=str(work.normal), samples=str(work.path("tuning.npz")), output=str(path), precision=precision
    )
    try:
        made = run_training(step).made
    except Rejected as err:
        return replace(trial, refused=str(err))
    return trial if made is None else work.judge_made(replace(trial, steps=made.notes), made)


def _distilled(work: Work) -> list[Trial]:
    def finish(attempt: Attempt, path: Path) -> Trial:
        words = f"pruned by {100 * attempt.share:g} % of the multiply-accumulates"
        return quantize_pruned(work, Trial("int8-distilled", path, (words, *attempt.notes), macs=attempt.cost.macs))

    return _in_turn(work, "int8-distilled", _MAC_SHARES, Distill, finish)


def _sparse(work: Work) -> list[Trial]:
    return _in_turn(
        work,
        "sparse",
        _SPARSITIES,
        Sparsify,
        lambda attempt, path: work.judge(Trial("sparse", path, attempt.notes, macs=work.macs)),
    )


def _in_turn(
    work: Work,
    name: TrainedName,
    shares: tuple[float, ...],
    kind: type[Distill] | type[Sparsify],
    finish: Callable[[Attempt, Path], Trial],
) -> list[Trial]:
    """Return the variant at the greatest share that keeps the accuracy, after those that did not."""
    fit, held_back = split_off(work)
    if fit is None or held_back is None:
        return [Trial(name, work.normal, (name,), refused="too few samples to train on and hold some out")]
    trials: list[Trial] = []
    while shares:
        path = work.path(f"{name}-{len(shares)}.tflite")
        step = kind(
            model=str(work.normal),
            samples=str(fit),
            held_back=str(held_back),
            output=str(path),
            shares=shares,
            max_drop=work.policy.max_accuracy_drop,
        )
        try:
            attempts = run_training(step).attempts
        except Rejected as err:
            return [*trials, Trial(name, work.normal, (name,), refused=str(err))]
        for attempt in attempts:
            if attempt.reason is None:
                trials.append(finish(attempt, path))
            else:
                reason = f"at {100 * attempt.share:g} %: on samples held back from tuning, {attempt.reason}"
                trials.append(Trial(name, path, attempt.notes, macs=attempt.cost.macs, refused=reason))
        if trials[-1].refused is None:
            break
        shares = shares[len(attempts) :]
    return trials
