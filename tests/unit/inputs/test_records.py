"""Inputs become records: the same ones in the same order each time, or are refused with what is wrong."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from regatta_agent.inputs.records import Block, first_of, open_records
from regatta_agent.inputs.wanted import Wanted, wanted_by
from regatta_agent.serving.tensors import Array
from regatta_protocol.errors import Rejected

_TABLE = Wanted("m", (8, 8, 1), "tensors")
_PICTURE = Wanted("m", (4, 2, 3), "image")


def _npy(array: Array) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def _read(path: Path | str, wanted: Wanted) -> list[tuple[str, bytes | Array]]:
    return [(record.key, record.read()) for record in open_records([str(path)], wanted).rows]


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (("1," * 63 + "2\n").encode() * 3, 3),
        (b"1 2 3 4 5 6 7 8\n" * 8, 1),
        (_npy(np.zeros((8, 8, 1), dtype=np.float32)), 1),
        (_npy(np.zeros((5, 8, 8, 1), dtype=np.int8)), 5),
        (_npy(np.zeros((5, 64), dtype=np.float32)), 5),
        (_npy(np.zeros((5, 1, 8, 8, 1), dtype=np.float32)), 5),
    ],
)
def test_tables_and_arrays_become_samples(tmp_path: Path, data: bytes, count: int) -> None:
    """One row or entry is one sample; a table of the sample's own size is one sample too."""
    (tmp_path / "file").write_bytes(data)

    found = _read(tmp_path / "file", _TABLE)

    assert [getattr(item, "shape", None) for _, item in found] == [(8, 8, 1)] * count
    assert len({key for key, _ in found}) == count


def test_an_array_of_many_samples_is_one_block_of_the_mapped_file(tmp_path: Path) -> None:
    """It is cut as it lies, its parts keep their keys, and one by one its samples are what they were."""
    array = np.arange(5 * 64, dtype=np.float32).reshape(5, 64)
    np.save(tmp_path / "x.npy", array)

    (block,) = first_of(open_records([str(tmp_path / "x.npy")], _TABLE).parts, 4)

    assert isinstance(block, Block)
    assert not block.array.flags.owndata
    assert [*block.part(0, 1).keys, *block.part(1, 9).keys] == [f"{tmp_path}/x.npy[{place}]" for place in range(4)]
    items = [np.asarray(record.read()) for record in block.part(1, 4).records()]
    np.testing.assert_array_equal(np.stack(items), array[1:4].reshape(3, 8, 8, 1))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b"1,2\n3\n", "different lengths"),
        (b"1,2,3\n", "shape"),
        (b"1 2 3 4 5 6 7 8\n" * 7 + b"1 2 3 4 5 6 7 x\n", "line 8"),
        (_npy(np.zeros((3, 3)))[:90], "readable"),
        (_npy(np.array([{}], dtype=object)), "readable"),
        (_npy(np.array(["a"])), "not numbers"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, data: bytes, says: str) -> None:
    """Damaged, pickled, ragged and misshapen files each have their words."""
    (tmp_path / "file").write_bytes(data)

    with pytest.raises(Rejected, match=says):
        _read(tmp_path / "file", _TABLE)


def test_pixels_and_sounds_of_any_size_go_to_the_worker_whole(tmp_path: Path) -> None:
    """uint8 pictures for a model of pictures, alone or many; int16 sounds for one of sounds."""
    arrays: dict[str, Array] = {
        "one": np.zeros((30, 20, 3), dtype=np.uint8),
        "many": np.zeros((5, 30, 20, 3), dtype=np.uint8),
        "own": np.zeros((5, 4, 2, 3), dtype=np.float32),
        "sound": np.zeros(100, dtype=np.int16),
    }
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)

    assert [item.shape for _, item in _read(tmp_path / "one.npy", _PICTURE) if not isinstance(item, bytes)] == [
        (30, 20, 3)
    ]
    assert len(_read(tmp_path / "many.npy", _PICTURE)) == len(_read(tmp_path / "own.npy", _PICTURE)) == 5
    assert len(_read(tmp_path / "sound.npy", Wanted("m", (490,), "audio"))) == 1
    with pytest.raises(Rejected, match="or a sound"):
        _read(tmp_path / "one.npy", Wanted("m", None, "audio"))


def test_folders_and_patterns_are_sorted_and_hidden_files_left_out(tmp_path: Path) -> None:
    """The same order on every file system; a damaged file is refused alone, when it is read."""
    for name in ("b.png", "a/2.png", "a/1.png", ".hidden.png", ".git/x.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    np.save(tmp_path / "c.npy", np.zeros((2, 4, 2, 3), dtype=np.float32))

    records = open_records([str(tmp_path)], _PICTURE)
    found = list(records.rows)

    assert [Path(record.key).relative_to(tmp_path).as_posix() for record in found] == [
        "b.png",
        "c.npy",
        "a/1.png",
        "a/2.png",
    ]
    assert records.total == 4
    with pytest.raises(Rejected, match="holds 2 samples"):
        found[1].read()
    pattern = open_records([str(tmp_path / "**" / "*.png")], _PICTURE)
    assert [record.read() for record in pattern.rows] == [b"a/1.png", b"a/2.png", b"b.png"]
    with pytest.raises(Rejected, match="no file, folder, or pattern"):
        open_records([str(tmp_path / "*.jpg")], _PICTURE)


def test_parquet_rows_are_files_or_numbers(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="parquet needs the extra")
    arrow = pytest.importorskip("pyarrow")
    tables = {
        "files": arrow.table({"picture": [b"one", b"two"]}),
        "lists": arrow.table({"x": [[0.5] * 24, [1.0] * 24]}),
        "numbers": arrow.table({f"x{place}": [1, 2, 3] for place in range(24)}),
    }
    for name, table in tables.items():
        parquet.write_table(table, tmp_path / f"{name}.parquet")

    assert [item for _, item in _read(tmp_path / "files.parquet", _PICTURE)] == [b"one", b"two"]
    assert len(_read(tmp_path / "lists.parquet", _PICTURE)) == 2
    assert len(_read(tmp_path / "numbers.parquet", _PICTURE)) == 3


def test_what_a_model_takes_is_in_its_metadata() -> None:
    """Models of several inputs or of changeable size take files only when the worker prepares them."""
    entry = {"name": "x", "shape": [1, 8, 8, 1]}
    picture = {"processing": {"input": "image"}}

    assert wanted_by({"name": "m", "inputs": [entry]}) == Wanted("m", (8, 8, 1), "tensors")
    assert wanted_by({"name": "m", "inputs": [{"name": "x", "shape": [1, -1]}], "parameters": picture}).kind == "image"
    with pytest.raises(Rejected, match="inputs"):
        wanted_by({"name": "m", "inputs": [entry, entry]})
    with pytest.raises(Rejected, match="changeable"):
        wanted_by({"name": "m", "inputs": [{"name": "x", "shape": [1, -1]}]})
