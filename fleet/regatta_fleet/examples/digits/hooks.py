"""The hooks of `recipe.yaml`: how the digits model is made, trained and judged, in numpy alone.

Every hook is optional. They are called by name in a child process, and their arguments by keyword.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from regatta_fleet.examples.digits import data, recipe
from regatta_fleet.examples.digits.network import Floats, initial_parameters
from regatta_fleet.optimize.model_file import model_bytes

__all__ = ["calibration", "evaluate", "make_model", "train"]

_EPOCHS = 12  # enough to see the chain at work; recipe.py trains 40


def make_model(seed: int) -> dict[str, Floats]:
    """Return the model that `train` takes; without a hook `train`, the finished one."""
    return initial_parameters(seed)


def train(model: dict[str, Floats], x: Floats, y: npt.NDArray[np.int64] | None, seed: int) -> bytes:
    """Return the trained model: the bytes of a .tflite, a path, or a torch.nn.Module.

    Args:
        x: float32 [n, 8, 8, 1] in 0..1, the samples for tuning.
        y: their labels.
    """
    assert y is not None, "digits have labels"
    parameters = recipe.train(data.Split(x, y, x, y), epochs=_EPOCHS, seed=seed, parameters=model)
    return model_bytes(recipe.build(parameters))


def calibration(seed: int) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Return samples x, with labels y where they are known, in place of --data."""
    split = data.load()
    return np.concatenate([split.train_x, split.test_x]), np.concatenate([split.train_y, split.test_y])


def evaluate(answers: Floats, labels: npt.NDArray[np.int64]) -> float:
    """Return the share of right answers, [0, 1]: what variants are judged by.

    Args:
        answers: float32 [n, 10], real values of output 0.
        labels: int64 [n].
    """
    return float((answers.argmax(1) == labels).mean())
