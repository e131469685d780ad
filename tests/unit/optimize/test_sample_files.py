"""Sample files are read in real values, or refused by array and value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regatta_fleet.optimize.samples import (
    Samples,
    check_labels,
    check_shape,
    read_samples,
    split_samples,
    write_samples,
)
from regatta_protocol.errors import Rejected


def _saved(path: Path, **arrays: Any) -> Path:  # what numpy.savez takes
    np.savez(path, **arrays)
    return path


def test_quantized_samples_become_real_values(tmp_path: Path) -> None:
    x = np.array([[0, 10], [20, 30]], np.int8)
    path = _saved(tmp_path / "s.npz", x=x, y=[1, 0], scale=0.5, zero_point=10)

    samples = read_samples(path)

    assert samples.x.tolist() == [[-5.0, 0.0], [5.0, 10.0]]
    assert samples.y is not None and samples.y.tolist() == [1, 0]


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write_samples(tmp_path / "s.npz", Samples(np.ones((3, 2), np.float32), np.arange(3)))

    samples = read_samples(tmp_path / "s.npz")

    assert samples.x.shape == (3, 2)
    assert samples.y is not None and samples.y.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"y": [1]}, "no array 'x'"),
        ({"x": np.zeros((0, 4))}, "shape \\[0, 4\\]"),
        ({"x": np.zeros(4)}, "shape \\[4\\]"),
        ({"x": np.array([["a", "b"]])}, "numbers"),
        ({"x": np.array([[1.0], [np.nan]])}, "NaN or infinite values, first in sample 1"),
        ({"x": np.zeros((2, 1)), "y": [1]}, "'y' is int64 of shape \\[1\\]"),
        ({"x": np.zeros((2, 1)), "y": [0.5, 1.0]}, "whole numbers"),
        ({"x": np.zeros((2, 1)), "y": [-1, 1]}, "label -1"),
        ({"x": np.zeros((2, 1)), "scale": 1.0}, "only one of 'scale' and 'zero_point'"),
        ({"x": np.zeros((2, 1)), "scale": 0.0, "zero_point": 0}, "above 0"),
        ({"x": np.zeros((2, 1)), "scale": [1.0, 2.0], "zero_point": 0}, "one finite number"),
    ],
)
def test_bad_arrays_are_refused_by_name(tmp_path: Path, arrays: dict[str, object], words: str) -> None:
    with pytest.raises(Rejected, match=words):
        read_samples(_saved(tmp_path / "s.npz", **arrays))


def test_pickles_are_never_read(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    np.savez(path, x=np.array([{"a": 1}], dtype=object), allow_pickle=True)

    with pytest.raises(Rejected, match="plain arrays"):
        read_samples(path)


def test_a_file_that_is_no_npz_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    path.write_bytes(b"not a zip at all")

    with pytest.raises(Rejected, match=r"s\.npz"):
        read_samples(path)


def test_the_halves_share_no_sample() -> None:
    samples = Samples(np.arange(10, dtype=np.float32).reshape(10, 1), np.arange(10))

    tuning, evaluation = split_samples(samples)

    assert sorted([*tuning.x.reshape(-1), *evaluation.x.reshape(-1)]) == list(range(10))
    assert (len(tuning), len(evaluation)) == (5, 5)


def test_one_sample_cannot_be_split() -> None:
    with pytest.raises(Rejected, match="1 sample"):
        split_samples(Samples(np.zeros((1, 1), np.float32)))


def test_shapes_and_labels_must_fit_the_model() -> None:
    samples = Samples(np.zeros((2, 8, 8, 1), np.float32), np.array([0, 10]))

    check_shape(samples, (1, 8, -1, 1), "s.npz")
    with pytest.raises(Rejected, match=r"\[8, 8, 1\].*\[28, 28, 1\]"):
        check_shape(samples, (1, 28, 28, 1), "s.npz")
    with pytest.raises(Rejected, match="label 10"):
        check_labels(samples, 10, "s.npz")
