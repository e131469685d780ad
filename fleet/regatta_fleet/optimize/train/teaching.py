"""Distillation: a student learns from a teacher's soft answers beside, or instead of, labels (Hinton et al. 2015).

    loss = (1 − a)·L_student + a·T²·KL(softmax(teacher / T) ‖ softmax(student / T))

L_student is the cross-entropy with the labels; where there are none, with the teacher's own first choices. Students
whose outputs are no logits of a softmax (an autoencoder) learn the teacher's outputs by mean squared error instead.
Any torch module can be a student or a teacher; it gives logits [n, classes].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from regatta_fleet.optimize.train.fit import Progress, fit
from regatta_fleet.optimize.train.operators import Tensor
from regatta_fleet.optimize.train.options import FitOptions
from regatta_protocol.errors import Rejected

__all__ = ["Blend", "Logits", "distillation_loss", "teach"]

Logits = Callable[[Tensor], Tensor]

_WITHOUT_GRADIENT = 64  # samples at a time: bounds memory


@dataclass(frozen=True)
class Blend:
    """a and T of the loss: `alpha` in [0, 1], 0 for no teacher; `temperature` >= 1."""

    alpha: float
    temperature: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise Rejected(f"cannot distill with alpha {self.alpha}: give 0 (labels alone) to 1 (the teacher alone)")
        if not 1 <= self.temperature <= 100:
            raise Rejected(f"cannot distill at a temperature of {self.temperature}: give 1 to 100")


def distillation_loss(student: Tensor, teacher: Tensor, targets: Tensor, blend: Blend) -> Tensor:
    """Return the loss of a batch.

    Args:
        student, teacher: logits [n, classes].
        targets: probabilities [n, classes] that L_student is the cross-entropy with.
    """
    loss = torch.zeros(())
    if blend.alpha < 1:
        loss = loss + (1 - blend.alpha) * functional.cross_entropy(student, targets)
    if blend.alpha > 0:
        t = blend.temperature
        soft = functional.log_softmax(student / t, 1), functional.log_softmax(teacher / t, 1)
        divergence = functional.kl_div(*soft, reduction="batchmean", log_target=True)
        loss = loss + blend.alpha * t**2 * divergence
    return loss


def teach(
    student: Logits,
    parameters: list[Tensor],
    teacher: Logits,
    x: npt.NDArray[np.float32],
    y: npt.NDArray[np.int64] | None,
    *,
    blend: Blend | None,
    options: FitOptions,
    seed: int,
    after_step: Callable[[float], None] = lambda share: None,
    progress: Progress = lambda message, share: None,
) -> tuple[float, ...]:
    """Train the student's parameters in place and return the mean loss of each epoch.

    Args:
        student, teacher: from samples [n, …] to logits [n, classes], or to outputs [n, …] when `blend` is None.
        x, y: real values [n, …]; labels int64 [n], or None for none.
        blend: how the teacher counts; None learns the teacher's outputs by mean squared error.

    Raises:
        Rejected: without samples, for labels out of range, or when training diverges.
    """
    inputs = torch.from_numpy(np.ascontiguousarray(x, np.float32))
    with torch.no_grad():
        answers = torch.cat([teacher(part) for part in inputs.split(_WITHOUT_GRADIENT)]) if len(x) else inputs
    targets = None if blend is None else _targets(answers, y)

    def loss(batch: Tensor, draw: torch.Generator) -> Tensor:
        seen, wanted = inputs[batch], answers[batch]
        labels = None if targets is None else targets[batch]
        if options.mixed and len(batch) > 1:
            share = torch.rand(len(batch), generator=draw)
            order = torch.randperm(len(batch), generator=draw)
            seen = _mix(seen, share, order)
            with torch.no_grad():
                wanted = teacher(seen)
            labels = None if labels is None else _mix(labels, share, order)
        given = student(seen)
        if blend is None or labels is None:
            return functional.mse_loss(given, wanted)
        return distillation_loss(given, wanted, labels, blend)

    return fit(parameters, len(x), loss, options, seed, after_step=after_step, progress=progress)


def _targets(answers: Tensor, y: npt.NDArray[np.int64] | None) -> Tensor:
    if answers.dim() != 2:
        raise Rejected(f"answers of shape {list(answers.shape)} are no classes: learn them by squared error (no blend)")
    classes = answers.shape[1]
    if y is None:
        return functional.one_hot(answers.argmax(1), classes).float()
    if len(y) != len(answers):
        raise Rejected(f"{len(y)} labels for {len(answers)} samples: give one a sample")
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise Rejected(f"labels are {int(y.min())} to {int(y.max())}, the model has classes 0 to {classes - 1}")
    return functional.one_hot(torch.from_numpy(y), classes).float()


def _mix(values: Tensor, share: Tensor, order: Tensor) -> Tensor:
    by_sample = share.reshape(-1, *[1] * (values.dim() - 1))
    return by_sample * values + (1 - by_sample) * values[order]
