"""Files become samples of the model's shape, or are refused with what is wrong."""

from __future__ import annotations

import io

import numpy as np
import pytest

from regatta_agent.serving.sources import InputShape, input_shape, read_samples
from regatta_agent.serving.tensors import Array
from regatta_protocol.errors import Rejected

IMAGE = {"height": 4, "width": 2, "channels": 3, "mean": 100.0, "scale": 0.5}
PICTURE = InputShape((4, 2, 3), IMAGE)
TABLE = InputShape((8, 8, 1), None)


def _npy(array: Array) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def test_a_picture_is_resized_and_scaled() -> None:
    """(pixel − mean) · scale at the model's size, whatever the picture's."""
    image = pytest.importorskip("PIL.Image", reason="pictures need the images extra")
    file = io.BytesIO()
    image.new("L", (31, 17), color=120).save(file, "PNG")

    samples = read_samples(file.getvalue(), "gray.png", PICTURE)

    assert samples.shape == (1, 4, 2, 3)
    assert samples.dtype == np.float32
    np.testing.assert_array_equal(samples, 10.0)
    with pytest.raises(Rejected, match=r"damaged|neither"):
        read_samples(file.getvalue()[:40], "cut.png", PICTURE)
    with pytest.raises(Rejected, match="takes no picture"):
        read_samples(file.getvalue(), "gray.png", TABLE)


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (("1," * 63 + "2\n").encode() * 3, 3),
        (b"1 2 3 4 5 6 7 8\n" * 8, 1),
        (_npy(np.zeros((8, 8, 1), dtype=np.float32)), 1),
        (_npy(np.zeros((5, 8, 8, 1), dtype=np.int8)), 5),
        (_npy(np.zeros((5, 64), dtype=np.float32)), 5),
    ],
)
def test_tables_and_arrays_become_samples(data: bytes, count: int) -> None:
    """One row or entry is one sample; a table of the sample's own size is one sample too."""
    assert read_samples(data, "file", TABLE).shape == (count, 8, 8, 1)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b"1,2\n3\n", "different lengths"),
        (b"1,2,3\n", "shape"),
        (_npy(np.zeros((3, 3)))[:90], "readable"),
        (_npy(np.array([{}], dtype=object)), "readable"),
        (_npy(np.array(["a"])), "not numbers"),
    ],
)
def test_files_that_do_not_fit_are_refused(data: bytes, says: str) -> None:
    """Damaged, pickled, ragged and misshapen files each have their words."""
    with pytest.raises(Rejected, match=says):
        read_samples(data, "file", TABLE)


def test_only_models_of_one_fixed_input_take_files() -> None:
    """The command is for one input of a fixed size; others need the client."""
    entry = {"name": "x", "shape": [1, 8, 8, 1]}

    assert input_shape({"name": "m", "inputs": [entry]}).sample_shape == (8, 8, 1)
    with pytest.raises(Rejected, match="inputs"):
        input_shape({"name": "m", "inputs": [entry, entry]})
    with pytest.raises(Rejected, match="changeable"):
        input_shape({"name": "m", "inputs": [{"name": "x", "shape": [1, -1]}]})
