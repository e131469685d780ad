"""Makes a version of a model that is wrong on purpose, to see a rollout's gate stop it.

The file stays valid: same shapes, same operators, finite weights. Only its answers suffer.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from regatta_fleet.optimize.model_file import constant, operator_name, read_model, set_constant, write_model

__all__ = ["damaged_copy"]

_NOISE_RATIO = 0.7  # of each layer's own spread; the digits model falls from .99 to below .7 (tested)
_SEED = 2


def damaged_copy(model: Path, output: Path) -> Path:
    """Write a copy of the float model with noise on the weights of its layers, and return `output`.

    Raises:
        Rejected: when `model` is no .tflite file.
    """
    tree = read_model(model)
    random = np.random.RandomState(_SEED)
    graph = tree.subgraphs[0]
    for operator in graph.operators:
        if operator_name(tree, operator) not in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
            continue
        tensor = graph.tensors[operator.inputs[1]]
        weights = constant(tree, tensor)
        if weights is not None and weights.dtype == np.float32:
            noise = random.standard_normal(weights.shape) * weights.std() * _NOISE_RATIO
            set_constant(tree, tensor, (weights + noise).astype(np.float32))
    write_model(tree, output)
    return output
