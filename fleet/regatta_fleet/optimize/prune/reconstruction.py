"""Which channels the layers behind them can best do without, when those layers may be refitted.

Let X be the inputs of a consuming layer on samples (centered, [rows, features]), W its weights and H = (XᵀX + λI)⁻¹.
Taking the features B of one channel out, with the others refitted by least squares, costs exactly
tr(W_Bᵀ · (H_BB)⁻¹ · W_B) of squared output error (optimal brain surgeon, Hassibi & Stork 1993, for blocks). Channels go
one by one, the cheapest first, and H and W are brought up to date after each, so that of two channels that say the
same only one goes. Costs are relative to the layer's output energy and summed over the layers that consume the group.

Against the norms of filters, on KWS without labels: .904 instead of .816 at 25 % of the filters (float .932).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from regatta_fleet.optimize.activations import record
from regatta_fleet.optimize.model_file import ModelTree, constant, model_bytes, operator_name
from regatta_fleet.optimize.prune.coupling import Consumer, Group
from regatta_fleet.optimize.prune.patches import layer_patches, some_rows

__all__ = ["RIDGE", "Activations", "Removal", "record_inputs", "removal_order"]

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Activations = dict[int, Floats]

_TINY = 1e-30  # keeps a layer whose inputs are all constant solvable
RIDGE = 1e-3  # of the mean square of the features; 1e-4 to 1e-2 prune KWS and digits alike


@dataclass(frozen=True)
class Removal:
    """Channels of a group in the order in which they go, int64 [count], and what each costs, float64 [count] >= 0.

    A cost is the share of the output energy of the layers that consume the group.
    """

    channels: npt.NDArray[np.int64]
    costs: Doubles


@dataclass
class _Layer:
    """A consuming layer while channels go: `places` int64 [channels, block] are the features of each channel."""

    inverse: Doubles  # H, [features, features]
    weights: Doubles  # W, [features, out]
    places: npt.NDArray[np.int64]
    energy: float  # of the outputs, > 0

    def costs(self) -> Doubles:
        """Return what taking each channel out would cost, [channels]."""
        blocks = self.inverse[self.places[:, :, None], self.places[:, None, :]]
        rows = self.weights[self.places]
        costs: Doubles = (rows * np.linalg.solve(blocks, rows)).sum((1, 2)) / self.energy
        return costs

    def remove(self, channel: int) -> None:
        """Take a channel out and refit the others."""
        gone = self.places[channel]
        block = self.inverse[np.ix_(gone, gone)]
        column = self.inverse[:, gone].copy()
        self.weights -= column @ np.linalg.solve(block, self.weights[gone])
        self.inverse -= column @ np.linalg.solve(block, column.T)
        self.weights[gone] = 0.0
        self.inverse[gone] = 0.0
        self.inverse[:, gone] = 0.0
        self.inverse[gone, gone] = 1.0  # keeps the block solvable; its weights are 0, and it is never chosen again


def record_inputs(model: ModelTree, groups: list[Group], samples: Floats) -> Activations:
    """Return the inputs of all layers that consume the groups, by tensor, float32 [n, …]."""
    operators = model.subgraphs[0].operators
    wanted = sorted({int(operators[consumer.operator].inputs[0]) for group in groups for consumer in group.consumers})
    return record(model_bytes(model), samples, wanted)


def removal_order(model: ModelTree, group: Group, count: int, activations: Activations) -> Removal:
    """Return the `count` channels of the group to take out, the cheapest first, and what each costs."""
    layers = [_layer(model, group.size, consumer, activations) for consumer in group.consumers]
    gone: list[int] = []
    paid: list[float] = []
    for _ in range(count):
        costs = np.sum([layer.costs() for layer in layers], axis=0)
        costs[gone] = np.inf
        channel = int(np.argmin(costs))
        gone.append(channel)
        paid.append(float(costs[channel]))
        for layer in layers:
            layer.remove(channel)
    return Removal(np.array(gone, np.int64), np.array(paid))


def _layer(model: ModelTree, size: int, consumer: Consumer, activations: Activations) -> _Layer:
    graph = model.subgraphs[0]
    operator = graph.operators[consumer.operator]
    weights = constant(model, graph.tensors[consumer.weights.tensor])
    assert weights is not None  # coupling only names layers with constant weights
    kernel = (weights.shape[1], weights.shape[2]) if weights.ndim == 4 else (1, 1)
    seen = layer_patches(activations[int(operator.inputs[0])], operator, operator_name(model, operator), kernel)
    x = seen[some_rows(len(seen))].astype(np.float64)
    x -= x.mean(0)
    flat = weights.reshape(len(weights), -1).astype(np.float64).T
    gram = x.T @ x
    gram += np.eye(len(gram)) * (RIDGE * float(np.trace(gram)) / len(gram) + _TINY)
    energy = float(np.sum(flat * (gram @ flat))) + _TINY
    width = weights.shape[consumer.weights.axis]
    windows = np.arange(len(gram) // width) * width  # each place of a kernel sees all input channels
    features = (consumer.weights.places(size)[:, None, :] + windows[None, :, None]).reshape(size, -1)
    return _Layer(np.linalg.inv(gram), flat, features, energy)
