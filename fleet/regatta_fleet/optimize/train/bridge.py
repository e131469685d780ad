"""A float .tflite as a PyTorch module, and its trained weights back in the .tflite.

The module keeps every weight in the file's own layout, one parameter a tensor, so writing back needs no converter:
whatever the file holds besides weights (operators, options, names, signatures) stays as it was. Trained are the weights
and biases of layers; other constants stand. Parity with LiteRT on MLPerf Tiny's models: within 1e-5.

    network = load_network(read_model(path))
    …train network…
    write_model(with_weights(model, network), path)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from regatta_fleet.optimize.model_file import (
    ModelTree,
    constant,
    operator_name,
    set_constant,
    tensor_name,
)
from regatta_fleet.optimize.train.operators import Tensor, build_operator
from regatta_protocol.errors import Rejected

__all__ = ["Layer", "Network", "load_network", "with_weights"]

Floats = npt.NDArray[np.float32]
Compute = Callable[[Sequence[Tensor]], Tensor]
Hook = Callable[[int, Tensor], Tensor]

_CHANNEL_AXIS = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 0}  # of the weights, where filters lie


@dataclass(frozen=True)
class Layer:
    """A layer that is trained: tensors in the file, -1 for no bias."""

    kind: str
    name: str  # of its output
    weights: int
    bias: int

    @property
    def channel_axis(self) -> int:
        """The axis of the weights that the filters lie on."""
        return _CHANNEL_AXIS[self.kind]


@dataclass(frozen=True)
class _Step:
    compute: Compute
    inputs: tuple[int, ...]
    output: int


class Network(torch.nn.Module):  # type: ignore[misc]  # torch is not looked into: it may be absent
    """The graph, computing on batches. `logits` is `forward` without a softmax at the end.

    `on_weights` and `on_activation` see each layer's weights and each computed tensor on their way, by the tensor's
    index in the file, and give what is used instead: that is how quantization is imitated.
    """

    def __init__(self, model: ModelTree) -> None:
        super().__init__()
        graph = model.subgraphs[0]
        self.layers = _layers(model)
        self.input, self.output = int(graph.inputs[0]), int(graph.outputs[0])
        self.on_weights: Hook = lambda index, value: value
        self.on_activation: Hook = lambda index, value: value
        self._steps: list[_Step] = []
        self._constants: dict[int, Tensor] = {}
        self.weights = torch.nn.ParameterDict()
        for operator in graph.operators:
            inputs = tuple(int(index) for index in operator.inputs if index >= 0)
            self._steps.append(_Step(build_operator(model, operator), inputs, int(operator.outputs[0])))
        trained = {index for layer in self.layers for index in (layer.weights, layer.bias) if index >= 0}
        for index in {index for step in self._steps for index in step.inputs}:
            values = constant(model, graph.tensors[index])
            if values is None:
                continue
            if index in trained:
                self.weights[str(index)] = torch.nn.Parameter(torch.from_numpy(values.astype(np.float32)))
            else:
                self._constants[index] = torch.from_numpy(values)
        self._filters = {layer.weights for layer in self.layers}
        last = graph.operators[-1]
        self.ends_in_softmax = operator_name(model, last) == "SOFTMAX" and int(last.outputs[0]) == self.output
        self._beta = float(getattr(last.builtinOptions, "beta", 1.0)) if self.ends_in_softmax else 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Return output 0 of the model, [n, …], for input 0 [n, …]."""
        return self._run(x, self._steps)

    def logits(self, x: Tensor) -> Tensor:
        """Return what goes into the softmax at the end, [n, …]; without one, output 0."""
        if not self.ends_in_softmax:
            return self(x)
        return self._run(x, self._steps[:-1]) * self._beta

    def parameter(self, index: int) -> Tensor:
        """Return the trained values of a tensor."""
        return self.weights[str(index)]

    def _run(self, x: Tensor, steps: Sequence[_Step]) -> Tensor:
        values = {self.input: self.on_activation(self.input, x)}
        for step in steps:
            made = step.compute([self._value(index, values) for index in step.inputs])
            values[step.output] = self.on_activation(step.output, made)
        return values[steps[-1].output if steps is not self._steps else self.output]

    def _value(self, index: int, values: dict[int, Tensor]) -> Tensor:
        if index in values:
            return values[index]
        if index in self._constants:
            return self._constants[index]
        found = self.weights[str(index)]
        return self.on_weights(index, found) if index in self._filters else found


def load_network(model: ModelTree) -> Network:
    """Return the model's only subgraph as a module.

    Raises:
        Rejected: naming operator and tensor: an operator that is not known here, a further input or output, or a graph
            without a batch of 1 in front.
    """
    graph = model.subgraphs[0]
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise Rejected(
            f"cannot train the model: it has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs, one of each "
            "can be trained"
        )
    place = graph.tensors[graph.inputs[0]]
    if place.shape is None or not len(place.shape) or int(place.shape[0]) != 1:
        raise Rejected(f"cannot train the model: input {tensor_name(place)!r} has no batch of 1 in front")
    network = Network(model)
    if not network.layers:
        raise Rejected("cannot train the model: it has no convolution or fully connected layer with constant weights")
    return network


def with_weights(model: ModelTree, network: Network) -> ModelTree:
    """Return a copy of the model that the network was made of, with the network's weights.

    Raises:
        Rejected: when weights became NaN or infinite in training; the text names the tensor.
    """
    trained = copy.deepcopy(model)
    tensors = trained.subgraphs[0].tensors
    for layer in network.layers:
        for index in (layer.weights, layer.bias):
            if index < 0:
                continue
            values: Floats = network.parameter(index).detach().numpy()
            if not np.isfinite(values).all():
                raise Rejected(
                    f"training diverged: tensor {tensor_name(tensors[index])!r} became NaN or infinite; lower the "
                    "learning rate"
                )
            set_constant(trained, tensors[index], values)
    return trained


def _layers(model: ModelTree) -> tuple[Layer, ...]:
    """Return the layers whose weights are constant floats; a bias that is computed or shared stays untrained."""
    graph = model.subgraphs[0]
    found = []
    for operator in graph.operators:
        kind = operator_name(model, operator)
        if kind not in _CHANNEL_AXIS:
            continue
        weights = constant(model, graph.tensors[operator.inputs[1]])
        if weights is None or weights.dtype != np.float32:
            continue
        bias = int(operator.inputs[2]) if len(operator.inputs) > 2 else -1
        if bias >= 0 and constant(model, graph.tensors[bias]) is None:
            bias = -1
        name = tensor_name(graph.tensors[operator.outputs[0]])
        found.append(Layer(kind, name, int(operator.inputs[1]), bias))
    return tuple(found)
