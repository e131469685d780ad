"""The training loop: Adam over a network's parameters, with whatever loss the caller has.

Steps are relative: a tensor moves by a share of the root mean square that it began with, as in Adafactor (Shazeer &
Stern 2018, section 8). Adam's steps have the size of the learning rate whatever the weights are, and trained models
come with weights of all sizes: ResNet8, whose inputs reach 255, was ruined by the rate that suits keyword spotting.

Seeded: the same network, samples, options and seed give the same weights on the same machine with one thread; matrix
products round differently elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch

from regatta_fleet.optimize.train.operators import Tensor
from regatta_fleet.optimize.train.options import FitOptions
from regatta_protocol.errors import Rejected

__all__ = ["Progress", "fit"]

Progress = Callable[[str, float], None]
_LEAST_SIZE = 1e-3  # lets biases that begin at 0 learn

Loss = Callable[[Tensor, torch.Generator], Tensor]


def fit(
    parameters: Iterable[Tensor],
    samples: int,
    loss: Loss,
    options: FitOptions,
    seed: int,
    *,
    after_step: Callable[[float], None] = lambda share: None,
    progress: Progress = lambda message, share: None,
) -> tuple[float, ...]:
    """Train the parameters in place and return the mean loss of each epoch.

    Args:
        parameters: float32 leaf tensors.
        samples: how many there are to draw batches from.
        loss: the mean loss of a batch, from the places int64 [batch] of its samples and the generator to draw with.
        after_step: told the share of the steps that are done, in (0, 1], after each.
        progress: told each epoch.

    Raises:
        Rejected: when there are no samples, or the loss becomes NaN or infinite.
    """
    if samples < 1:
        raise Rejected("cannot train on no samples: give at least one, better some hundred")
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam([{"params": [p], "lr": options.learning_rate * _size(p)} for p in parameters])
    batches = math.ceil(samples / options.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs * batches)
    found = []
    for epoch in range(options.epochs):
        total = 0.0
        for place, batch in enumerate(torch.randperm(samples, generator=draw).split(options.batch_size)):
            optimizer.zero_grad()
            value = loss(batch, draw)
            size = float(value.detach())
            if not math.isfinite(size):
                raise Rejected(
                    f"training diverged in epoch {epoch + 1}: the loss is {size}; lower the learning rate "
                    f"(it was {options.learning_rate:g})"
                )
            value.backward()
            optimizer.step()
            schedule.step()
            total += size * len(batch)
            after_step((epoch * batches + place + 1) / (options.epochs * batches))
        found.append(total / samples)
        progress(f"epoch {epoch + 1} of {options.epochs}, loss {found[-1]:.4f}", (epoch + 1) / options.epochs)
    return tuple(found)


def _size(values: Tensor) -> float:
    """Return the root mean square of the values, at least a thousandth."""
    return max(float(values.detach().square().mean().sqrt()), _LEAST_SIZE)
