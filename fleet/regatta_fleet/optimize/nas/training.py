"""Trains a candidate for so many steps, and scores it. Only in the search's child.

A step is the gradient of one batch: what budgets are counted in. The same seed gives the same weights on one thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from regatta_fleet.optimize.samples import Samples
from regatta_protocol.errors import Rejected

__all__ = ["BATCH", "Data", "accuracy_of", "batches", "divide", "train"]

BATCH = 64
_RATE = 4e-3  # of Adam, under one cosine
_DECAY = 1e-3  # decoupled
_SMOOTHING = 0.05
_VALIDATION = 4  # every fourth sample scores candidates
_LEAST = 40  # samples


@dataclass(frozen=True)
class Data:
    """Pictures float32 [n, c, h, w] and labels int64 [n]."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.x)


def divide(samples: Samples) -> tuple[Data, Data, Data]:
    """Return what candidates train on, what scores them, and both together.

    Raises:
        Rejected: when the samples are too few, have no labels, or are no pictures.
    """
    if samples.y is None:
        raise Rejected("a search needs labelled samples: give 'y' in --data")
    if samples.x.ndim != 4:
        raise Rejected(f"a search needs samples [n, h, w, c], 'x' is {list(samples.x.shape)}")
    if len(samples) < _LEAST:
        raise Rejected(f"a search needs at least {_LEAST} labelled samples to train and score on, not {len(samples)}")
    x = torch.from_numpy(samples.x).permute(0, 3, 1, 2).contiguous()
    y = torch.from_numpy(samples.y)
    scores = torch.arange(len(x)) % _VALIDATION == _VALIDATION - 1
    return Data(x[~scores], y[~scores]), Data(x[scores], y[scores]), Data(x, y)


def batches(data: Data, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches without end, every epoch in another order."""
    size = min(BATCH, len(data))
    while True:
        order = torch.randperm(len(data), generator=generator)
        for begin in range(0, len(data) - size + 1, size):
            chosen = order[begin : begin + size]
            yield data.x[chosen], data.y[chosen]


def train(network: nn.Module, data: Data, steps: int, seed: int) -> None:
    """Train the network in place: Adam under one cosine, cross-entropy with smoothed labels."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=_RATE, weight_decay=_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    source = batches(data, generator)
    network.train()
    for _ in range(steps):
        x, y = next(source)
        loss = functional.cross_entropy(network(x), y, label_smoothing=_SMOOTHING)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval()


def accuracy_of(network: nn.Module, data: Data) -> float:
    """Return the share of right answers."""
    network.eval()
    with torch.no_grad():
        answers = torch.cat([network(part).argmax(1) for part in data.x.split(512)])
    return float((answers == data.y).float().mean())
