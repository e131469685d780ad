"""What crashed is remembered over restarts, shown on request, and forgotten on request."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from regatta_agent.cli.commands import cli
from regatta_agent.disk.quarantine_file import QuarantineFile
from regatta_protocol.measurement import BoardFacts, CandidateResult, Outcome, RaceReport
from regatta_runtimes.worker.quarantine import Quarantine

TWICE = Quarantine().struck("p", "litert/int8/vx/t1", "SIGSEGV").struck("p", "litert/int8/vx/t1", "SIGSEGV")


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    """Over a restart, that is by another object."""
    QuarantineFile(tmp_path).save(TWICE)

    assert QuarantineFile(tmp_path).load() == TWICE


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pairs": {"p": {"count": 0}}}', b"\0" * 300_000])
def test_a_damaged_file_counts_as_empty(tmp_path: Path, content: bytes) -> None:
    """Empty, cut off, of another shape, zeroed: what crashes is tried again, and the file is then good again."""
    (tmp_path / "quarantine.json").write_bytes(content)
    file = QuarantineFile(tmp_path)

    assert file.load() == Quarantine()
    file.save(TWICE)
    assert file.load() == TWICE


def test_a_folder_that_cannot_be_written_costs_only_the_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The race's result is not lost with it; the log tells."""
    QuarantineFile(tmp_path / "gone").save(TWICE)

    assert "quarantine_lost" in caplog.text


def test_a_crash_while_serving_counts_and_a_return_clears_it(tmp_path: Path) -> None:
    """By the pair that the race knew; without its report, or of a candidate that is not in it, nothing is counted."""
    tpu, cpu = "litert/int8/edgetpu/t1", "litert/int8/none/t1"
    raced = tuple(
        CandidateResult(
            id=one, runtime="litert", variant="int8", delegate=one.split("/")[2], threads=1, outcome=Outcome.MEASURED,
            pair=pair,
        )
        for one, pair in ((tpu, "p"), (cpu, None))
    )  # fmt: skip
    report = RaceReport(model="m", version=1, board=BoardFacts(), candidates=raced, reason="", duration_s=1.0)
    file = QuarantineFile(tmp_path)

    file.strike(None, tpu, "SIGSEGV")
    file.strike(report, cpu, "SIGSEGV")
    file.strike(report, "litert/int8/gone/t1", "SIGSEGV")
    assert file.load() == Quarantine()

    file.strike(report, tpu, "SIGSEGV")
    assert file.load().refuses("p") is None
    file.strike(report, tpu, "hung")
    assert "quarantined after 2 crashes" in (file.load().refuses("p") or "")

    file.absolve(report, tpu)
    assert file.load() == Quarantine()


def test_the_command_shows_and_clears(tmp_path: Path) -> None:
    """As a table, as JSON, and after clearing nothing is left."""
    QuarantineFile(tmp_path).save(TWICE)
    where = ["quarantine", "--state-dir", str(tmp_path)]

    shown = CliRunner().invoke(cli, where)
    cleared = CliRunner().invoke(cli, ["quarantine", "clear", "--json", "--state-dir", str(tmp_path)])
    empty = CliRunner().invoke(cli, where)

    assert "litert/int8/vx/t1" in shown.output
    assert "SIGSEGV" in shown.output
    assert json.loads(cleared.output) == {
        "pairs": {"p": {"count": 2, "candidate": "litert/int8/vx/t1", "reason": "SIGSEGV"}},
        "cleared": True,
    }
    assert "nothing has crashed here" in empty.output
