"""What the operators of a .tflite graph compute, in PyTorch: one builder for each kind that `bridge` knows.

Layouts are TFLite's: activations [n, h, w, c], convolution weights [out, kh, kw, in], depthwise weights [1, kh, kw,
in · multiplier], fully connected weights [out, in]. A graph is written for a batch of 1 on axis 0; here the batch is
whatever comes in, so operators that touch axis 0 are refused. The reference is TFLite's kernels (tensorflow/lite/
kernels/internal/reference): padding SAME puts the odd row or column at the end, and average pooling leaves the padding
out of the mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch.nn import functional

from regatta_fleet.optimize.model_file import ModelTree, constant, operator_name, schema, tensor_name
from regatta_protocol.errors import Rejected

__all__ = ["KNOWN_OPERATORS", "Tensor", "build_operator"]

Tensor: TypeAlias = torch.Tensor
Compute = Callable[[Sequence[Tensor]], Tensor]

_ACTIVATIONS: dict[int, Callable[[Tensor], Tensor]] = {
    schema.ActivationFunctionType.NONE: lambda x: x,
    schema.ActivationFunctionType.RELU: torch.relu,
    schema.ActivationFunctionType.RELU_N1_TO_1: lambda x: x.clamp(-1, 1),
    schema.ActivationFunctionType.RELU6: functional.relu6,
    schema.ActivationFunctionType.TANH: torch.tanh,
}
_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "RELU": torch.relu,
    "RELU6": functional.relu6,
    "RELU_N1_TO_1": lambda x: x.clamp(-1, 1),
    "LOGISTIC": torch.sigmoid,
    "TANH": torch.tanh,
    "HARD_SWISH": functional.hardswish,
    "ELU": functional.elu,
    "EXP": torch.exp,
    "RSQRT": torch.rsqrt,
    "SQRT": torch.sqrt,
    "ABS": torch.abs,
    "NEG": torch.neg,
    "LOG_SOFTMAX": lambda x: torch.log_softmax(x, -1),
}
_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ADD": torch.add,
    "SUB": torch.sub,
    "MUL": torch.mul,
    "DIV": torch.div,
    "MAXIMUM": torch.maximum,
    "MINIMUM": torch.minimum,
    "SQUARED_DIFFERENCE": lambda x, y: (x - y) ** 2,
}
_RESHAPING = ("RESHAPE", "SQUEEZE", "EXPAND_DIMS")


@dataclass(frozen=True)
class _Operator:
    """An operator of the graph with what its builder asks about it."""

    model: ModelTree
    tree: Any  # schema.OperatorT
    kind: str

    def option(self, name: str, default: Any = 0) -> Any:  # noqa: ANN401  # an int, a bool or an array
        """Return an option by its name in the schema; files leave the defaults out."""
        options = self.tree.builtinOptions
        return default if options is None else getattr(options, name, default)

    def shape(self, index: int) -> tuple[int, ...]:
        """Return the shape that the file gives a tensor."""
        shape = self.model.subgraphs[0].tensors[index].shape
        return () if shape is None else tuple(int(size) for size in shape)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Return the shape of the only output, batch of 1 included."""
        return self.shape(int(self.tree.outputs[0]))

    def whole_numbers(self, place: int) -> list[int]:
        """Return the constant input at `place` as ints."""
        values = constant(self.model, self.model.subgraphs[0].tensors[self.tree.inputs[place]])
        if values is None:
            raise self.refusal(f"its input {place} is computed")
        return [int(value) for value in values.reshape(-1)]

    @property
    def activation(self) -> Callable[[Tensor], Tensor]:
        """Return the activation that is fused into the operator."""
        found = _ACTIVATIONS.get(int(self.option("fusedActivationFunction")))
        if found is None:
            raise self.refusal(f"activation {self.option('fusedActivationFunction')} is fused into it")
        return found

    def refusal(self, reason: str) -> Rejected:
        """Return the error that names the operator and the tensor that it makes."""
        made = tensor_name(self.model.subgraphs[0].tensors[self.tree.outputs[0]])
        return Rejected(
            f"cannot train the model: operator {self.kind}, which makes {made!r}: {reason} (known: "
            f"{', '.join(KNOWN_OPERATORS)})"
        )


def build_operator(model: ModelTree, tree: Any) -> Compute:  # noqa: ANN401  # schema.OperatorT
    """Return what the operator computes from its inputs in order, absent optional ones left out.

    Raises:
        Rejected: naming operator and tensor, when it is not known or reaches over the batch.
    """
    operator = _Operator(model, tree, operator_name(model, tree))
    if len(tree.outputs) != 1:
        raise operator.refusal(f"it has {len(tree.outputs)} outputs")
    builder = _BUILDERS.get(operator.kind)
    if builder is None:
        raise operator.refusal("it is not known here")
    if operator.output_shape[:1] != (1,):
        raise operator.refusal(f"its shape {list(operator.output_shape)} has no batch of 1 in front")
    return builder(operator)


def _convolution(operator: _Operator) -> Compute:
    weights = operator.shape(int(operator.tree.inputs[1]))
    depthwise = operator.kind == "DEPTHWISE_CONV_2D"
    channels = operator.shape(int(operator.tree.inputs[0]))[-1]
    groups = channels if depthwise else channels // weights[3]
    stride = (int(operator.option("strideH")), int(operator.option("strideW")))
    dilation = (int(operator.option("dilationHFactor", 1)), int(operator.option("dilationWFactor", 1)))
    same = int(operator.option("padding")) == schema.Padding.SAME
    activation = operator.activation
    order = (3, 0, 1, 2) if depthwise else (0, 3, 1, 2)

    def compute(inputs: Sequence[Tensor]) -> Tensor:
        x, kernel = inputs[0].permute(0, 3, 1, 2), inputs[1].permute(order)
        if same:
            x = functional.pad(x, _same_padding(x.shape[2:], kernel.shape[2:], stride, dilation))
        bias = inputs[2] if len(inputs) > 2 else None
        y = functional.conv2d(x, kernel, bias, stride, 0, dilation, groups)
        return activation(y.permute(0, 2, 3, 1))

    return compute


def _fully_connected(operator: _Operator) -> Compute:
    features, shape = operator.shape(int(operator.tree.inputs[1]))[1], operator.output_shape
    activation = operator.activation

    def compute(inputs: Sequence[Tensor]) -> Tensor:
        bias = inputs[2] if len(inputs) > 2 else None
        y = functional.linear(inputs[0].reshape(-1, features), inputs[1], bias)
        return activation(y.reshape(len(inputs[0]), *shape[1:]))

    return compute


def _pooling(operator: _Operator) -> Compute:
    size = (int(operator.option("filterHeight")), int(operator.option("filterWidth")))
    stride = (int(operator.option("strideH")), int(operator.option("strideW")))
    same = int(operator.option("padding")) == schema.Padding.SAME
    largest = operator.kind == "MAX_POOL_2D"
    activation = operator.activation

    def compute(inputs: Sequence[Tensor]) -> Tensor:
        x = inputs[0].permute(0, 3, 1, 2)
        around = _same_padding(x.shape[2:], size, stride, (1, 1)) if same else (0, 0, 0, 0)
        if largest:
            y = functional.max_pool2d(functional.pad(x, around, value=-torch.inf), size, stride)
        else:
            y = functional.avg_pool2d(functional.pad(x, around), size, stride)
            if any(around):
                y = y / functional.avg_pool2d(functional.pad(torch.ones_like(x[:1, :1]), around), size, stride)
        return activation(y.permute(0, 2, 3, 1))

    return compute


def _same_padding(
    sizes: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[int, int, int, int]:
    """Return left, right, top, bottom."""
    found = []
    for axis in (1, 0):
        reach = (kernel[axis] - 1) * dilation[axis] + 1
        total = max((-(-sizes[axis] // stride[axis]) - 1) * stride[axis] + reach - sizes[axis], 0)
        found += [total // 2, total - total // 2]
    return found[0], found[1], found[2], found[3]


def _binary(operator: _Operator) -> Compute:
    function, activation = _BINARY[operator.kind], operator.activation
    return lambda inputs: activation(function(inputs[0], inputs[1]))


def _unary(operator: _Operator) -> Compute:
    function = _UNARY[operator.kind]
    return lambda inputs: function(inputs[0])


def _leaky(operator: _Operator) -> Compute:
    slope = float(operator.option("alpha", 0.0))
    return lambda inputs: functional.leaky_relu(inputs[0], slope)


def _prelu(operator: _Operator) -> Compute:
    return lambda inputs: torch.relu(inputs[0]) - inputs[1] * torch.relu(-inputs[0])


def _reshaping(operator: _Operator) -> Compute:
    if operator.shape(int(operator.tree.inputs[0]))[:1] != (1,):
        raise operator.refusal("it moves the batch")
    shape = operator.output_shape
    return lambda inputs: inputs[0].reshape(len(inputs[0]), *shape[1:])


def _softmax(operator: _Operator) -> Compute:
    beta = float(operator.option("beta", 1.0))
    return lambda inputs: torch.softmax(inputs[0] * beta, -1)


def _padding(operator: _Operator) -> Compute:
    pairs = operator.whole_numbers(1)
    if any(pairs[:2]):
        raise operator.refusal("it pads the batch")
    around = [size for place in range(len(pairs) - 2, -2, -2) for size in pairs[place : place + 2]]
    return lambda inputs: functional.pad(inputs[0], around, value=float(inputs[2]) if len(inputs) > 2 else 0.0)


def _reduction(operator: _Operator) -> Compute:
    rank = len(operator.shape(int(operator.tree.inputs[0])))
    axes = tuple(axis % rank for axis in operator.whole_numbers(1))
    if 0 in axes:
        raise operator.refusal("it reduces the batch")
    function = {"MEAN": torch.mean, "SUM": torch.sum, "REDUCE_MAX": torch.amax}[operator.kind]
    shape = operator.output_shape
    return lambda inputs: function(inputs[0], axes).reshape(len(inputs[0]), *shape[1:])


def _concatenation(operator: _Operator) -> Compute:
    axis = int(operator.option("axis")) % len(operator.output_shape)
    if axis == 0:
        raise operator.refusal("it joins along the batch")
    shapes = [operator.shape(int(index)) for index in operator.tree.inputs]
    activation = operator.activation

    def compute(inputs: Sequence[Tensor]) -> Tensor:
        batch = max(len(value) for value in inputs)
        parts = [value.expand(batch, *shape[1:]) for value, shape in zip(inputs, shapes, strict=True)]
        return activation(torch.cat(parts, axis))

    return compute


def _transposition(operator: _Operator) -> Compute:
    order = operator.whole_numbers(1)
    if order[0] != 0:
        raise operator.refusal("it moves the batch")
    return lambda inputs: inputs[0].permute(order)


_BUILDERS: dict[str, Callable[[_Operator], Compute]] = {
    "CONV_2D": _convolution,
    "DEPTHWISE_CONV_2D": _convolution,
    "FULLY_CONNECTED": _fully_connected,
    "AVERAGE_POOL_2D": _pooling,
    "MAX_POOL_2D": _pooling,
    "CONCATENATION": _concatenation,
    "LEAKY_RELU": _leaky,
    "MEAN": _reduction,
    "PAD": _padding,
    "PADV2": _padding,
    "PRELU": _prelu,
    "REDUCE_MAX": _reduction,
    "SOFTMAX": _softmax,
    "SUM": _reduction,
    "TRANSPOSE": _transposition,
    **dict.fromkeys(_BINARY, _binary),
    **dict.fromkeys(_UNARY, _unary),
    **dict.fromkeys(_RESHAPING, _reshaping),
}
KNOWN_OPERATORS = tuple(sorted(_BUILDERS))
