"""Trains the digits model that ships with Regatta and writes it as a float .tflite; no framework is needed.

    python -m regatta_fleet.examples.digits.recipe --output FOLDER

Writes `digits_float.tflite` and `digits.json` (what was trained, with which accuracy). Every run draws the same
numbers, but matrix products round differently from machine to machine, so accuracy agrees to a point, not to a bit.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from regatta_fleet.examples.digits import data
from regatta_fleet.examples.digits.network import Adam, Floats, gradients, initial_parameters, logits
from regatta_fleet.optimize.model_builder import ModelBuilder
from regatta_fleet.optimize.model_file import ModelTree, model_bytes
from regatta_protocol.durable import write_durably
from regatta_protocol.ids import digest_of_bytes

__all__ = ["accuracy", "build", "main", "train"]

_SEED = 7
_EPOCHS = 40
_BATCH = 64
_PEAK_RATE = 2e-3
_WEIGHT_DECAY = 0.02
_DROPOUT = 0.3
_LABEL_SMOOTHING = 0.05


def train(
    split: data.Split, *, epochs: int = _EPOCHS, seed: int = _SEED, parameters: dict[str, Floats] | None = None
) -> dict[str, Floats]:
    """Return trained parameters: Adam under one cosine of the rate, pictures shifted by up to a pixel.

    Args:
        parameters: to start from, changed in place [initial_parameters(seed)].
    """
    random = np.random.RandomState(seed)
    parameters = initial_parameters(seed) if parameters is None else parameters
    adam = Adam(parameters, decay=_WEIGHT_DECAY)
    targets = np.eye(10, dtype=np.float32)[split.train_y] * (1 - _LABEL_SMOOTHING) + _LABEL_SMOOTHING / 10
    batches = len(split.train_y) // _BATCH
    for step in range(epochs * batches):
        if step % batches == 0:
            order = random.permutation(len(split.train_y))
        chosen = order[step % batches * _BATCH :][:_BATCH]
        pictures = _shifted(split.train_x[chosen], random)
        dropout = (random.random_sample((_BATCH, 512)) >= _DROPOUT) / np.float32(1 - _DROPOUT)
        _, slopes = gradients(parameters, pictures, targets[chosen].astype(np.float32), dropout.astype(np.float32))
        adam.step(slopes, _PEAK_RATE * 0.5 * (1 + np.cos(np.pi * step / (epochs * batches))))
    return parameters


def accuracy(parameters: dict[str, Floats], split: data.Split) -> tuple[int, int]:
    """Return how many of the test digits are recognized, and how many there are."""
    found = logits(parameters, split.test_x).argmax(1)
    return int((found == split.test_y).sum()), len(split.test_y)


def build(parameters: dict[str, Floats]) -> ModelTree:
    """Return the model: input float32 [1, 8, 8, 1] in 0..1, output the probabilities [1, 10]."""
    builder = ModelBuilder("Regatta's digits")
    place = builder.input("picture", (1, 8, 8, 1))
    place = builder.conv("conv1", place, *_layer(parameters, "conv1"), (1, 8, 8, 32))
    place = builder.conv("conv2", place, *_layer(parameters, "conv2"), (1, 8, 8, 32))
    place = builder.pool("pool", place, (1, 4, 4, 32), size=2)
    place = builder.reshape("flat", place, (1, 512))
    place = builder.dense("dense1", place, *_layer(parameters, "dense1"), (1, 64), activation="RELU")
    place = builder.dense("dense2", place, *_layer(parameters, "dense2"), (1, 10))
    return builder.finish([builder.softmax("probabilities", place, (1, 10))])


def main(arguments: list[str] | None = None) -> int:
    """Train, write, and say what came out."""
    parser = argparse.ArgumentParser(prog="python -m regatta_fleet.examples.digits.recipe", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="the folder to write to")
    folder: Path = parser.parse_args(arguments).output
    folder.mkdir(parents=True, exist_ok=True)
    split = data.load()
    parameters = train(split)
    correct, total = accuracy(parameters, split)
    content = model_bytes(build(parameters))
    record = {
        "file": "digits_float.tflite",
        "sha256": digest_of_bytes(content),
        "size_bytes": len(content),
        "correct": correct,
        "total": total,
        "seed": _SEED,
        "epochs": _EPOCHS,
        "data": "scikit-learn load_digits, 1257 pictures for training and 540 for the test",
        "rebuild": "python -m regatta_fleet.examples.digits.recipe --output FOLDER",
    }
    write_durably(folder / "digits_float.tflite", content, mode=0o644)
    write_durably(folder / "digits.json", (json.dumps(record, indent=2) + "\n").encode(), mode=0o644)
    sys.stdout.write(f"{correct} of {total} test digits right, {len(content)} bytes in {folder}\n")
    return 0


def _layer(parameters: dict[str, Floats], name: str) -> tuple[Floats, Floats]:
    return parameters[f"{name}/weights"], parameters[f"{name}/bias"]


def _shifted(pictures: Floats, random: np.random.RandomState) -> Floats:
    """Return the pictures, each moved by -1, 0 or 1 pixels both ways."""
    n = len(pictures)
    padded = np.pad(pictures, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = random.randint(0, 3, n)[:, None, None] + np.arange(8)[None, :, None]
    columns = random.randint(0, 3, n)[:, None, None] + np.arange(8)[None, None, :]
    moved: Floats = padded[np.arange(n)[:, None, None], rows, columns]
    return moved


if __name__ == "__main__":
    sys.exit(main())
