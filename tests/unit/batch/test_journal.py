"""A journal and its spool agree after any end, and the output of any format is the spool's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from regatta_agent.batch.journal import Journal, Settings
from regatta_agent.batch.results import Results, encode_lines, encode_rows, format_of, write_output
from regatta_agent.inputs.records import Record
from regatta_protocol.errors import Rejected

_SETTINGS = Settings(model="m", inputs=("x",), format="jsonl", top=0)


def _opened(output: Path, settings: Settings = _SETTINGS, *, restart: bool = False) -> Journal:
    journal = Journal(output, settings)
    journal.open(restart=restart)
    return journal


def _records(*keys: str) -> Iterator[Record]:
    return (Record(key, lambda: b"") for key in keys)


def test_what_was_not_checkpointed_counts_for_nothing(tmp_path: Path) -> None:
    """The spool is cut to the journal's bytes, and the digest of its keys goes on from there."""
    journal = _opened(tmp_path / "out.jsonl")
    journal.append(b"one\n", ["a"], 0)
    journal.checkpoint()
    kept = journal.progress
    journal.append(b"two\nthr", ["b", "c"], 1)
    journal.close()

    again = _opened(tmp_path / "out.jsonl")
    left = [record.key for record in again.rest_of(_records("a", "b")) if isinstance(record, Record)]

    assert again.progress == kept and kept.records == 1
    assert left == ["b"]
    again.append(b"2\n", ["b"], 0)
    again.checkpoint()
    assert again.spool_path.read_bytes() == b"one\n2\n"
    again.close()
    whole = _opened(tmp_path / "other.jsonl")
    whole.append(b"", ["a", "b"], 0)
    assert whole.progress.keys_digest == again.progress.keys_digest


def test_other_settings_and_another_run_are_refused(tmp_path: Path) -> None:
    journal = _opened(tmp_path / "out.jsonl")
    journal.append(b"one\n", ["a"], 0)
    journal.checkpoint()

    with pytest.raises(Rejected, match="another run"):
        _opened(tmp_path / "out.jsonl")
    journal.close()
    with pytest.raises(Rejected, match="other settings"):
        _opened(tmp_path / "out.jsonl", _SETTINGS.model_copy(update={"top": 3}))
    fresh = _opened(tmp_path / "out.jsonl", restart=True)
    assert (fresh.progress.records, fresh.spool_path.read_bytes()) == (0, b"")
    fresh.discard()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("keys", [(), ("b",), ("b", "a"), ("ab",)])
def test_finished_records_that_have_changed_are_refused(tmp_path: Path, keys: tuple[str, ...]) -> None:
    """Fewer, other, or in another order."""
    journal = _opened(tmp_path / "out.jsonl")
    journal.append(b"one\ntwo\n", ["a", "b"], 0)
    journal.checkpoint()
    journal.close()

    with pytest.raises(Rejected, match="changed since 2 records"):
        _opened(tmp_path / "out.jsonl").rest_of(_records(*keys))


def test_a_journal_of_an_older_version_is_refused(tmp_path: Path) -> None:
    """What its digest means is not known."""
    journal = _opened(tmp_path / "out.jsonl")
    journal.checkpoint()
    journal.close()
    path = tmp_path / "out.jsonl.journal"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 1}))

    with pytest.raises(Rejected, match="older version"):
        _opened(tmp_path / "out.jsonl")


def test_a_spool_that_is_too_short_is_refused(tmp_path: Path) -> None:
    """Somebody cut or removed it: its results are gone."""
    journal = _opened(tmp_path / "out.jsonl")
    journal.append(b"one\n", ["a"], 0)
    journal.checkpoint()
    journal.close()
    journal.spool_path.unlink()

    with pytest.raises(Rejected, match="--restart"):
        _opened(tmp_path / "out.jsonl")


_RESULTS = [
    Results(["a"], [{"kind": "classification", "classes": [{"index": 1, "score": 0.5, "label": "é, cat"}]}]),
    Results(["b"], error="no picture"),
    Results(["c"], [{"kind": "anomaly", "score": 2.5}]),
]


def _written(output: Path, data: bytes, shape: tuple[int, ...] | None = None) -> Path:
    journal = _opened(output, _SETTINGS.model_copy(update={"format": format_of(output)}))
    journal.append(data, ["a", "b", "c"], 1, shape)
    journal.checkpoint()
    write_output(journal.spool_path, output, journal.progress)
    journal.discard()
    return output


def test_every_format_says_the_same(tmp_path: Path) -> None:
    lines = _written(tmp_path / "out.jsonl", encode_lines(_RESULTS)).read_text().splitlines()
    table = _written(tmp_path / "out.csv", encode_lines(_RESULTS)).read_text().splitlines()

    assert [json.loads(line)["key"] for line in lines] == ["a", "b", "c"]
    assert table == [
        "key,kind,label,index,score,count,error",
        'a,classification,"é, cat",1,0.5,1,',
        "b,,,,,0,no picture",
        "c,anomaly,,,2.5,0,",
    ]
    parquet = pytest.importorskip("pyarrow.parquet", reason="parquet needs the extra")
    rows = parquet.read_table(_written(tmp_path / "out.parquet", encode_lines(_RESULTS))).to_pylist()
    assert [(row["key"], row["score"], row["error"]) for row in rows] == [
        ("a", 0.5, None),
        ("b", None, "no picture"),
        ("c", 2.5, None),
    ]
    assert json.loads(rows[0]["answer"])["classes"][0]["label"] == "é, cat"


def test_rows_become_an_array_with_nan_where_a_record_was_refused(tmp_path: Path) -> None:
    rows = np.array([[1, 2], [3, 4]], dtype=np.float32)
    data = encode_rows([Results(["a", "b"], rows=rows), Results(["c"], error="x")], (2,))

    array = np.load(_written(tmp_path / "out.npy", data, (2,)))

    np.testing.assert_array_equal(array, np.array([[1, 2], [3, 4], [np.nan, np.nan]]))
    with pytest.raises(Rejected, match="shape"):
        encode_rows([Results(["d"], rows=np.zeros((1, 3)))], (2,))
    numbers = encode_rows([Results(["a", "b", "c"], rows=np.ones(3))], ())  # an output that is a number each
    np.testing.assert_array_equal(np.load(_written(tmp_path / "numbers.npy", numbers, ())), np.ones(3))


def test_only_known_endings_are_taken() -> None:
    with pytest.raises(Rejected, match=r"\.parquet"):
        format_of(Path("out.txt"))
