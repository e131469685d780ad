"""`regatta batch` over the fake fleet: what is asked, shown and refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from regatta_fleet.cli import main
from regatta_fleet.testing import FakeFleet
from regatta_protocol.batch import BatchState, BatchSummary
from sample_fleet import give_batches


def test_a_batch_from_start_to_end(fleet: FakeFleet, capsys: pytest.CaptureFixture[str]) -> None:
    """Started on a group, listed, shown with its summary, and cancelled; --json is the API's document."""
    on = next(iter(fleet.devices))
    started = [
        "batch",
        "start",
        "digits",
        "--on",
        on,
        "--input",
        "/data/in",
        "--format",
        "csv",
        "--limit",
        "9",
        "--json",
    ]
    assert main(started) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["output"], document["limit"]) == (f"{document['id']}.csv", 9)
    (device,) = document["devices"]
    assert (device["device"], device["state"]) == (on, "queued")

    detail = fleet.batches[document["id"]]
    summary = BatchSummary(
        records=9, refused=1, seconds=1, per_second=9, p50_us=84.2, classes={"seven": 8}, mean_score=0.5
    )
    done = detail.devices[0].model_copy(update={"state": BatchState.DONE, "records": 9, "total": 9, "summary": summary})
    fleet.batches[detail.id] = detail.model_copy(update={"devices": (done,)})
    assert main(["batch", "show", detail.id]) == 0
    shown = capsys.readouterr().out
    assert all(words in shown for words in ("done", "9 of 9", "class seven", "84.2 µs", "mean score"))
    assert main(["batch", "list"]) == 0
    assert "1 done" in capsys.readouterr().out
    assert main(["batch", "cancel", detail.id]) == 0
    assert "cancelled" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["start", "away", "--on", "all", "--input", "/x"], 65, "no model away"),
        (["start", "digits", "--on", "Cam 1", "--input", "/x"], 65, "device id 'Cam 1'"),
        (["start", "digits", "--on", "all", "--input", "/" + "x" * 512], 65, "input"),
        (["start", "digits", "--input", "/x"], 2, "--on"),
        (["show", "b-none"], 65, "batch list"),
        (["results", "b-none", "--output", "/tmp"], 65, "batch list"),
        (["results", "b-none", "--output", "/tmp", "--max-size", "2GB"], 65, "the most is"),
        (["results", "b-none"], 2, "--output"),
    ],
)
def test_what_cannot_be_is_said(
    fleet: FakeFleet, capsys: pytest.CaptureFixture[str], args: list[str], code: int, words: str
) -> None:
    """In one line, with what to do."""
    assert main(["batch", *args]) == code
    assert words in capsys.readouterr().err
    assert not fleet.batches


@pytest.fixture
def done(fleet: FakeFleet) -> FakeFleet:
    """A fleet with the batch b-2, done on three devices, of which two send their outputs."""
    give_batches(fleet)
    batch = fleet.batches["b-2"]
    waiting = tuple(one.model_copy(update={"results": None}) for one in batch.devices)
    fleet.batches["b-2"] = batch.model_copy(update={"devices": waiting})
    fleet.outputs = {("b-2", name): f"answers of {name}\n".encode() for name in ("quay-1", "quay-2")}
    return fleet


def test_results_are_pulled_into_a_folder_and_not_twice(
    done: FakeFleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file for each device; a device that refuses is told with its reason; again, nothing is written anew."""
    command = ["batch", "results", "b-2", "--output", str(tmp_path / "out")]
    assert main(command) == 65
    told = capsys.readouterr()
    assert "a metered link" in told.out and "no results of crane-1" in told.err
    names = ["b-2-quay-1.jsonl", "b-2-quay-2.jsonl"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert (tmp_path / "out" / names[0]).read_text() == "answers of quay-1\n"

    before = (tmp_path / "out" / names[0]).stat().st_mtime_ns
    (tmp_path / "out" / names[1]).write_text("damaged by hand")
    assert main([*command, "--on", "quay-1", "--on", "quay-2", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [one["said"] for one in document["devices"]] == ["here already", "here"]
    assert (tmp_path / "out" / names[0]).stat().st_mtime_ns == before
    assert (tmp_path / "out" / names[1]).read_text() == "answers of quay-2\n"


def test_the_servers_copies_go_when_asked(done: FakeFleet, tmp_path: Path) -> None:
    """Once all that was asked for is in the folder, and not before."""
    command = ["batch", "results", "b-2", "--output", str(tmp_path), "--delete"]
    assert main(command) == 65
    assert done.batches["b-2"].devices[0].results is not None
    done.outputs["b-2", "crane-1"] = b""

    assert main(command) == 0
    assert all(one.results is None for one in done.batches["b-2"].devices)


def test_what_is_late_is_told_and_can_be_gone_on_with(
    done: FakeFleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit code says that it may work later; a job that is not done has no results to wait for."""
    done.late.add("quay-1")
    assert main(["batch", "results", "b-2", "--output", str(tmp_path), "--on", "quay-1", "--timeout", "0s"]) == 75
    told = capsys.readouterr()
    assert "waiting: digits:2" in told.out and "run it again" in told.err
    assert main(["batch", "results", "b-3", "--output", str(tmp_path), "--on", "quay-1"]) == 65
    assert "the job is running" in capsys.readouterr().out
