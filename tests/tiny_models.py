"""Small float32 .tflite models with seeded weights, made without training: the same arguments give the same bytes.

Those for runtimes are bytes, sound or for no runtime here; those for the optimizer are trees, which it changes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from regatta_fleet.optimize.model_builder import ModelBuilder
from regatta_fleet.optimize.model_file import ModelTree, model_bytes, write_model

__all__ = [
    "Floats",
    "branches",
    "build_tiny_model",
    "dense_model",
    "depthwise_chain",
    "normal",
    "plain_chain",
    "residual",
    "unary_model",
    "write_abs_golden",
    "write_samples_file",
    "write_tiny_model",
    "write_tree",
]

Floats = npt.NDArray[np.float32]
_CUSTOM = 32  # BuiltinOperator.CUSTOM
_PLACEHOLDER = 127  # what deprecatedBuiltinCode, a byte, holds for operators above it


def normal(*shape: int, seed: int = 0, scale: float = 0.3) -> Floats:
    """Return seeded normal numbers."""
    return (np.random.RandomState(seed).standard_normal(shape) * scale).astype(np.float32)


def _bare_bytes(model: ModelTree) -> bytes:
    """Return the file with nothing that a runtime could do without: no signature and no names but the tensors'."""
    model.signatureDefs = model.description = model.subgraphs[0].name = None
    return model_bytes(model)


def unary_model(builtin: int = 101, custom: str | None = None, width: int = 4) -> bytes:
    """Return float32 `in` [1, width] -> one operator -> `out` [1, width]; by default ABS (builtin 101)."""
    builder = ModelBuilder("one operator")
    model = builder.finish([builder.relu("out", builder.input("in", (1, width)), (1, width))])
    (code,) = model.operatorCodes
    code.builtinCode = builtin if custom is None else _CUSTOM
    code.deprecatedBuiltinCode = min(code.builtinCode, _PLACEHOLDER)
    code.customCode = None if custom is None else custom.encode()
    return _bare_bytes(model)


def write_abs_golden(path: Path, *variants: str) -> Path:
    """Write the golden samples of ABS for these variants, which need no runtime to be known, and return the path."""
    x = normal(8, 4, scale=1.0)
    np.savez(path, **{"in.0": x, **{f"out.{name}.0": np.abs(x) for name in variants}})
    return path


def dense_model(weights: npt.NDArray[Any], bias: npt.NDArray[Any], *, any_batch: bool = False) -> bytes:
    """Return float32 `in` [1, n] -> FULLY_CONNECTED, weights [m, n], bias [m] -> `out` [1, m]; the 1 may be any."""
    outputs, inputs = weights.shape
    builder = ModelBuilder("dense")
    model = builder.finish([builder.dense("out", builder.input("in", (1, inputs)), weights, bias, (1, outputs))])
    tensors = model.subgraphs[0].tensors
    if any_batch:
        for tensor in (tensors[0], tensors[-1]):
            tensor.shapeSignature = [-1, tensor.shape[1]]
    return _bare_bytes(model)


def build_tiny_model(size: int = 8, classes: int = 10, seed: int = 0) -> bytes:
    """Return a classifier: `image` [1, size, size, 1] -> conv 3x3, relu, dense, softmax -> `scores`."""
    flat = size * size * 4
    builder = ModelBuilder("tiny classifier")
    place = builder.input("image", (1, size, size, 1))
    kernel, dense = normal(4, 3, 3, 1, seed=seed, scale=0.5), normal(classes, flat, seed=seed, scale=flat**-0.5)
    place = builder.conv("features", place, kernel, normal(4, seed=seed, scale=0.1), (1, size, size, 4))
    place = builder.dense("logits", place, dense, np.zeros(classes, np.float32), (1, classes))
    return _bare_bytes(builder.finish([builder.softmax("scores", place, (1, classes))]))


def write_tiny_model(path: Path, size: int = 8, classes: int = 10, seed: int = 0) -> Path:
    """Write the classifier to `path` and return it."""
    path.write_bytes(build_tiny_model(size, classes, seed))
    return path


def plain_chain(filters: int = 8) -> ModelTree:
    """conv -> conv -> pool -> flatten -> dense -> softmax, on [1, 8, 8, 1]."""
    builder = ModelBuilder("plain chain")
    place = builder.input("x", (1, 8, 8, 1))
    place = builder.conv("a", place, normal(filters, 3, 3, 1, seed=1), normal(filters, seed=2), (1, 8, 8, filters))
    place = builder.conv("b", place, normal(6, 3, 3, filters, seed=3), normal(6, seed=4), (1, 4, 4, 6), stride=2)
    place = builder.pool("p", place, (1, 2, 2, 6), size=2)
    place = builder.reshape("f", place, (1, 24))
    place = builder.dense("d", place, normal(5, 24, seed=5), normal(5, seed=6), (1, 5))
    return builder.finish([builder.softmax("s", place, (1, 5))])


def depthwise_chain() -> ModelTree:
    """conv -> depthwise -> 1×1 conv -> average pool -> flatten -> dense, on [1, 8, 8, 2]."""
    builder = ModelBuilder("depthwise chain")
    place = builder.input("x", (1, 8, 8, 2))
    place = builder.conv("a", place, normal(8, 3, 3, 2, seed=1), normal(8, seed=2), (1, 8, 8, 8))
    place = builder.depthwise("w", place, normal(1, 3, 3, 8, seed=3), normal(8, seed=4), (1, 8, 8, 8))
    place = builder.conv("b", place, normal(6, 1, 1, 8, seed=5), normal(6, seed=6), (1, 8, 8, 6))
    place = builder.pool("p", place, (1, 1, 1, 6), size=8, kind="AVERAGE")
    place = builder.reshape("f", place, (1, 6))
    return builder.finish([builder.dense("d", place, normal(4, 6, seed=7), normal(4, seed=8), (1, 4))])


def residual() -> ModelTree:
    """conv -> [conv -> conv] + shortcut -> relu -> flatten -> dense, on [1, 4, 4, 1]."""
    builder = ModelBuilder("residual")
    place = builder.input("x", (1, 4, 4, 1))
    stem = builder.conv("stem", place, normal(8, 3, 3, 1, seed=1), normal(8, seed=2), (1, 4, 4, 8))
    place = builder.conv("in", stem, normal(8, 3, 3, 8, seed=3), normal(8, seed=4), (1, 4, 4, 8))
    place = builder.conv("out", place, normal(8, 3, 3, 8, seed=5), normal(8, seed=6), (1, 4, 4, 8), activation="NONE")
    place = builder.relu("r", builder.add("sum", stem, place, (1, 4, 4, 8)), (1, 4, 4, 8))
    place = builder.reshape("f", place, (1, 128))
    return builder.finish([builder.dense("d", place, normal(3, 128, seed=7), normal(3, seed=8), (1, 3))])


def branches() -> ModelTree:
    """[conv | conv] joined -> depthwise -> times a constant -> conv -> pool -> flatten -> dense, on [1, 4, 4, 2]."""
    builder = ModelBuilder("branches")
    place = builder.input("x", (1, 4, 4, 2))
    left = builder.conv("a", place, normal(8, 3, 3, 2, seed=1), normal(8, seed=2), (1, 4, 4, 8))
    right = builder.conv("b", place, normal(6, 1, 1, 2, seed=3), normal(6, seed=4), (1, 4, 4, 6))
    place = builder.concatenate("j", [left, right], (1, 4, 4, 14))
    place = builder.depthwise("w", place, normal(1, 3, 3, 14, seed=5), normal(14, seed=6), (1, 4, 4, 14))
    place = builder.multiply("t", place, builder.constant("m", normal(1, 1, 1, 14, seed=7)), (1, 4, 4, 14))
    place = builder.conv("c", place, normal(8, 3, 3, 14, seed=8), normal(8, seed=9), (1, 4, 4, 8))
    place = builder.pool("p", place, (1, 2, 2, 8), size=2, kind="AVERAGE")
    place = builder.reshape("f", place, (1, 32))
    return builder.finish([builder.dense("d", place, normal(4, 32, seed=10), normal(4, seed=11), (1, 4))])


def write_samples_file(path: Path, *shape: int, classes: int | None = None, seed: int = 9) -> Path:
    """Write an .npz of seeded samples, with labels when `classes` is given."""
    x = normal(*shape, seed=seed, scale=1.0)
    if classes is None:
        np.savez(path, x=x)
    else:
        np.savez(path, x=x, y=np.arange(len(x)) % classes)
    return path


def write_tree(path: Path, model: ModelTree) -> Path:
    """Write the model and return the path."""
    write_model(model, path)
    return path
