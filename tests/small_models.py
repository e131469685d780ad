"""Small float models with seeded weights, for tests of the optimizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from regatta_fleet.optimize.model_builder import ModelBuilder
from regatta_fleet.optimize.model_file import ModelTree, write_model

__all__ = ["branches", "depthwise_chain", "normal", "plain_chain", "residual", "write_samples_file", "write_tree"]

Floats = npt.NDArray[np.float32]


def normal(*shape: int, seed: int = 0, scale: float = 0.3) -> Floats:
    """Return seeded normal numbers."""
    return (np.random.RandomState(seed).standard_normal(shape) * scale).astype(np.float32)


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
