"""`regatta batch` over the fake fleet: what is asked, shown and refused."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from regatta_fleet.cli import main
from regatta_fleet.testing import FakeFleet, serve
from regatta_protocol.batch import BatchState, BatchSummary
from sample_fleet import harbor


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeFleet]:
    found = harbor()
    with serve(found.app()) as url:
        monkeypatch.setenv("REGATTA_URL", url)
        monkeypatch.setenv("REGATTA_TOKEN", found.token)
        yield found


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
    ],
)
def test_what_cannot_be_is_said(
    fleet: FakeFleet, capsys: pytest.CaptureFixture[str], args: list[str], code: int, words: str
) -> None:
    """In one line, with what to do."""
    assert main(["batch", *args]) == code
    assert words in capsys.readouterr().err
    assert not fleet.batches
