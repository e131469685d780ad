"""What crashed is remembered over restarts, shown on request, and forgotten on request."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from regatta_agent.cli.commands import cli
from regatta_agent.quarantine_file import QuarantineFile
from regatta_runtimes.quarantine import Quarantine

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
