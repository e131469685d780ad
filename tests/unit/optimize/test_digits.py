"""The digits model that ships is what its record says, and its recipe makes one as good."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from regatta_fleet.examples.digits import LABELS, MODEL, RECORD, data, recipe
from regatta_fleet.examples.digits.damage import damaged_copy
from regatta_fleet.examples.digits.network import gradients, initial_parameters
from regatta_fleet.models.labels import parse_labels
from regatta_fleet.optimize.evaluate import answers_of
from regatta_fleet.optimize.model_file import parse_model
from regatta_fleet.optimize.samples import read_samples
from regatta_protocol.ids import digest_of_file


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data.evaluation(tmp_path_factory.mktemp("digits") / "evaluation.npz")


def _accuracy(model: Path, evaluation: Path) -> float:
    samples = read_samples(evaluation)
    return float((answers_of(model, evaluation).argmax(1) == samples.y).mean())


def test_the_shipped_model_is_as_recorded(evaluation: Path) -> None:
    record = json.loads(RECORD.read_text())

    assert digest_of_file(MODEL) == record["sha256"]
    assert MODEL.stat().st_size == record["size_bytes"] <= 200_000
    assert _accuracy(MODEL, evaluation) == pytest.approx(record["correct"] / record["total"], abs=1 / 540 + 1e-9)
    assert record["correct"] / record["total"] >= 0.98


def test_the_recipe_makes_one_as_good(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert recipe.main(["--output", str(tmp_path)]) == 0

    made, shipped = json.loads((tmp_path / "digits.json").read_text()), json.loads(RECORD.read_text())
    assert abs(made["correct"] - shipped["correct"]) <= 5.4  # one point of 540
    assert "test digits right" in capsys.readouterr().out
    parse_model((tmp_path / "digits_float.tflite").read_bytes())


def test_the_split_is_fixed_and_shares_nothing() -> None:
    split = data.load()

    assert (len(split.train_y), len(split.test_y)) == (1257, 540)
    assert split.test_y[:8].tolist() == data.load().test_y[:8].tolist()
    assert split.train_x.min() >= 0.0 and split.train_x.max() <= 1.0
    train = {picture.tobytes() for picture in split.train_x}
    assert sum(picture.tobytes() in train for picture in split.test_x) == 0


def test_calibration_comes_of_the_training_half(tmp_path: Path) -> None:
    samples = read_samples(data.calibration(tmp_path / "calibration.npz"))
    train = {picture.tobytes() for picture in data.load().train_x}

    assert all(picture.tobytes() in train for picture in samples.x)


def test_labels_are_the_ten_digits() -> None:
    assert len(parse_labels(LABELS.read_bytes(), "labels.txt")) == 10


def test_the_damaged_copy_is_valid_and_wrong(tmp_path: Path, evaluation: Path) -> None:
    damaged = damaged_copy(MODEL, tmp_path / "damaged.tflite")

    assert damaged.stat().st_size == MODEL.stat().st_size
    assert _accuracy(damaged, evaluation) < 0.7


def test_gradients_are_those_of_the_loss() -> None:
    """Against central differences, in float64, at a few weights of every layer."""
    random = np.random.RandomState(0)
    parameters = {name: values.astype(np.float64) for name, values in initial_parameters(1).items()}
    pictures, dropout = random.random_sample((3, 8, 8, 1)), np.ones((3, 512))
    targets = np.eye(10)[[1, 5, 7]]

    _, slopes = gradients(parameters, pictures, targets, dropout)  # type: ignore[arg-type]  # float64 on purpose

    for name, values in parameters.items():
        place = tuple(int(random.randint(0, size)) for size in values.shape)
        losses = []
        for change in (1e-4, -1e-4):
            moved = {**parameters, name: values.copy()}
            moved[name][place] += change
            losses.append(gradients(moved, pictures, targets, dropout)[0])  # type: ignore[arg-type]  # as above
        assert slopes[name][place] == pytest.approx((losses[0] - losses[1]) / 2e-4, abs=2e-4), name
