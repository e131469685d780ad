"""A tiny float32 classifier as a .tflite file, made without training: conv 3x3, relu, dense, softmax, from seeded
weights. Input `image` float32 [1, size, size, 1], output `scores` float32 [1, classes]. Built with the schema's own
classes, so it needs no converter; about 3 KB.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

CHANNELS = 4


def build_tiny_model(size: int = 8, classes: int = 10, seed: int = 0) -> bytes:
    """Return the file's bytes; the same arguments give the same bytes."""
    generator = np.random.default_rng(seed)
    flat = size * size * CHANNELS
    weights = [
        generator.normal(0, 0.5, (CHANNELS, 3, 3, 1)).astype(np.float32),
        generator.normal(0, 0.1, CHANNELS).astype(np.float32),
        generator.normal(0, 1.0 / np.sqrt(flat), (classes, flat)).astype(np.float32),
        np.zeros(classes, dtype=np.float32),
    ]
    graph = schema.SubGraphT()
    model = schema.ModelT()
    model.version, model.description = 3, b"tiny classifier"
    model.buffers = [schema.BufferT()]

    def tensor(name: str, shape: tuple[int, ...], data: Any = None) -> int:
        entry = schema.TensorT()
        entry.name, entry.shape, entry.type = name.encode(), list(shape), schema.TensorType.FLOAT32
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(data.tobytes(), dtype=np.uint8)
            model.buffers.append(buffer)
            entry.buffer = len(model.buffers) - 1
        graph.tensors.append(entry)
        return len(graph.tensors) - 1

    def operator(code: int, inputs: list[int], output: int, kind: int, options: Any) -> None:
        entry, opcode = schema.OperatorT(), schema.OperatorCodeT()
        opcode.builtinCode = opcode.deprecatedBuiltinCode = code
        opcode.version = 1
        model.operatorCodes.append(opcode)
        entry.opcodeIndex, entry.inputs, entry.outputs = len(model.operatorCodes) - 1, inputs, [output]
        entry.builtinOptionsType, entry.builtinOptions = kind, options
        graph.operators.append(entry)

    model.operatorCodes, graph.tensors, graph.operators, graph.name = [], [], [], b"main"
    image = tensor("image", (1, size, size, 1))
    kernel, bias = tensor("kernel", weights[0].shape, weights[0]), tensor("bias", weights[1].shape, weights[1])
    features = tensor("features", (1, size, size, CHANNELS))
    dense, offset = tensor("dense", weights[2].shape, weights[2]), tensor("offset", weights[3].shape, weights[3])
    logits, scores = tensor("logits", (1, classes)), tensor("scores", (1, classes))

    options = schema.BuiltinOptions
    convolution = schema.Conv2DOptionsT()
    convolution.padding, convolution.strideW, convolution.strideH = schema.Padding.SAME, 1, 1
    convolution.dilationWFactor = convolution.dilationHFactor = 1
    convolution.fusedActivationFunction = schema.ActivationFunctionType.RELU
    softmax = schema.SoftmaxOptionsT()
    softmax.beta = 1.0
    codes = schema.BuiltinOperator
    operator(codes.CONV_2D, [image, kernel, bias], features, options.Conv2DOptions, convolution)
    operator(
        codes.FULLY_CONNECTED,
        [features, dense, offset],
        logits,
        options.FullyConnectedOptions,
        schema.FullyConnectedOptionsT(),
    )
    operator(codes.SOFTMAX, [logits], scores, options.SoftmaxOptions, softmax)
    graph.inputs, graph.outputs = [image], [scores]
    model.subgraphs = [graph]

    builder = flatbuffers.Builder(4096)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def write_tiny_model(path: Path, size: int = 8, classes: int = 10, seed: int = 0) -> Path:
    """Write the model to `path` and return it."""
    path.write_bytes(build_tiny_model(size, classes, seed))
    return path
