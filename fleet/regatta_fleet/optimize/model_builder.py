"""Builds a float .tflite model operator by operator, for recipes that train without a framework.

Only the operators that small convolutional networks need; shapes are given by the caller and checked by the runtime
when the file is first allocated. Layouts are TFLite's: activations [n, h, w, c], convolution weights [out, kh, kw,
in], depthwise weights [1, kh, kw, channels], fully connected weights [out, in].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from regatta_fleet.optimize.model_file import Array, ModelTree, normalize, schema

__all__ = ["Activation", "ModelBuilder"]

Activation = Literal["NONE", "RELU", "RELU6"]
Padding = Literal["SAME", "VALID"]


class ModelBuilder:
    """Collects tensors and operators; a tensor is spoken of by its index."""

    def __init__(self, description: str) -> None:
        self._model: Any = schema.ModelT()
        self._model.version = 3
        self._model.description = description.encode()
        self._model.operatorCodes = []
        self._model.buffers = [schema.BufferT()]  # buffer 0 is the empty one
        self._graph: Any = schema.SubGraphT()
        self._graph.name = b"main"
        self._graph.tensors = []
        self._graph.operators = []
        self._graph.inputs = []
        self._graph.outputs = []
        self._model.subgraphs = [self._graph]

    @classmethod
    def of(cls, model: ModelTree) -> ModelBuilder:
        """Return a builder that goes on with the only subgraph of a model, in place."""
        builder = cls.__new__(cls)
        builder._model, builder._graph = model, model.subgraphs[0]
        return builder

    def input(self, name: str, shape: Sequence[int]) -> int:
        """Add a float32 input."""
        index = self._tensor(name, shape)
        self._graph.inputs.append(index)
        return index

    def constant(self, name: str, values: Array) -> int:
        """Add constant values: int32 stays, all else becomes float32."""
        wanted = np.int32 if values.dtype == np.int32 else np.float32
        holder = schema.BufferT()
        holder.data = np.ascontiguousarray(values, wanted).reshape(-1).view(np.uint8)
        self._model.buffers.append(holder)
        index = self._tensor(name, values.shape)
        tensor = self._graph.tensors[index]
        tensor.buffer = len(self._model.buffers) - 1
        tensor.type = schema.TensorType.INT32 if wanted is np.int32 else schema.TensorType.FLOAT32
        return index

    def conv(
        self, name: str, source: int, weights: Array, bias: Array, shape: Sequence[int], *,
        stride: int = 1, padding: Padding = "SAME", activation: Activation = "RELU",
    ) -> int:  # fmt: skip
        """Add CONV_2D with weights [out, kh, kw, in]."""
        options = schema.Conv2DOptionsT()
        options.strideH = options.strideW = stride
        options.padding = getattr(schema.Padding, padding)
        options.fusedActivationFunction = getattr(schema.ActivationFunctionType, activation)
        inputs = [source, self.constant(f"{name}/weights", weights), self.constant(f"{name}/bias", bias)]
        return self.operator("CONV_2D", inputs, name, shape, options)

    def depthwise(
        self, name: str, source: int, weights: Array, bias: Array, shape: Sequence[int], *,
        stride: int = 1, padding: Padding = "SAME", activation: Activation = "RELU",
    ) -> int:  # fmt: skip
        """Add DEPTHWISE_CONV_2D with weights [1, kh, kw, channels], one filter a channel."""
        options = schema.DepthwiseConv2DOptionsT()
        options.strideH = options.strideW = stride
        options.padding = getattr(schema.Padding, padding)
        options.depthMultiplier = 1
        options.fusedActivationFunction = getattr(schema.ActivationFunctionType, activation)
        inputs = [source, self.constant(f"{name}/weights", weights), self.constant(f"{name}/bias", bias)]
        return self.operator("DEPTHWISE_CONV_2D", inputs, name, shape, options)

    def pool(
        self,
        name: str,
        source: int,
        shape: Sequence[int],
        *,
        size: int | tuple[int, int],
        kind: Literal["MAX", "AVERAGE"] = "MAX",
    ) -> int:
        """Add a pooling over windows of `size` (height and width; one number for both) that do not overlap."""
        options = schema.Pool2DOptionsT()
        height, width = (size, size) if isinstance(size, int) else size
        options.filterHeight = options.strideH = height
        options.filterWidth = options.strideW = width
        options.padding = schema.Padding.VALID
        return self.operator(f"{kind}_POOL_2D", [source], name, shape, options)

    def reshape(self, name: str, source: int, shape: Sequence[int]) -> int:
        """Add RESHAPE."""
        options = schema.ReshapeOptionsT()
        options.newShape = list(shape)
        return self.operator(
            "RESHAPE", [source, self.constant(f"{name}/shape", np.array(shape, np.int32))], name, shape, options
        )

    def add(self, name: str, left: int, right: int, shape: Sequence[int], *, activation: Activation = "NONE") -> int:
        """Add ADD of two tensors of one shape."""
        options = schema.AddOptionsT()
        options.fusedActivationFunction = getattr(schema.ActivationFunctionType, activation)
        return self.operator("ADD", [left, right], name, shape, options)

    def multiply(self, name: str, left: int, right: int, shape: Sequence[int]) -> int:
        """Add MUL of two tensors, of one shape or by channel."""
        return self.operator("MUL", [left, right], name, shape, schema.MulOptionsT())

    def concatenate(self, name: str, sources: Sequence[int], shape: Sequence[int], *, axis: int = -1) -> int:
        """Add CONCATENATION along an axis, of the channels unless another is given."""
        options = schema.ConcatenationOptionsT()
        options.axis = axis
        return self.operator("CONCATENATION", sources, name, shape, options)

    def relu(self, name: str, source: int, shape: Sequence[int]) -> int:
        """Add RELU by itself."""
        return self.operator("RELU", [source], name, shape, None)

    def dense(
        self, name: str, source: int, weights: Array, bias: Array, shape: Sequence[int], *,
        activation: Activation = "NONE",
    ) -> int:  # fmt: skip
        """Add FULLY_CONNECTED with weights [out, in]."""
        options = schema.FullyConnectedOptionsT()
        options.fusedActivationFunction = getattr(schema.ActivationFunctionType, activation)
        inputs = [source, self.constant(f"{name}/weights", weights), self.constant(f"{name}/bias", bias)]
        return self.operator("FULLY_CONNECTED", inputs, name, shape, options)

    def softmax(self, name: str, source: int, shape: Sequence[int]) -> int:
        """Add SOFTMAX over the last axis."""
        options = schema.SoftmaxOptionsT()
        options.beta = 1.0
        return self.operator("SOFTMAX", [source], name, shape, options)

    def finish(self, outputs: Sequence[int]) -> ModelTree:
        """Return the model with these outputs and a signature."""
        self._graph.outputs = list(outputs)
        normalize(self._model)
        return self._model

    def _tensor(self, name: str, shape: Sequence[int]) -> int:
        tensor = schema.TensorT()
        tensor.name = name.encode()
        tensor.shape = [int(size) for size in shape]
        tensor.type = schema.TensorType.FLOAT32
        tensor.buffer = 0
        self._graph.tensors.append(tensor)
        return len(self._graph.tensors) - 1

    def operator(
        self, kind: str, inputs: Sequence[int], name: str, shape: Sequence[int], options: object | None
    ) -> int:
        """Add an operator by its name in the schema, with the object of its options there."""
        code = getattr(schema.BuiltinOperator, kind)
        codes = [entry.builtinCode for entry in self._model.operatorCodes]
        if code not in codes:
            entry = schema.OperatorCodeT()
            entry.builtinCode = entry.deprecatedBuiltinCode = code  # old runtimes read the deprecated field
            entry.version = 1
            self._model.operatorCodes.append(entry)
            codes.append(code)
        output = self._tensor(name, shape)
        operator = schema.OperatorT()
        operator.opcodeIndex = codes.index(code)
        operator.inputs = list(inputs)
        operator.outputs = [output]
        if options is not None:
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__[:-1])
            operator.builtinOptions = options
        self._graph.operators.append(operator)
        return output
