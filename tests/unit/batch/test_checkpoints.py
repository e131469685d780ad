"""Checkpoints are made beside the work, and what they kept is what a kill leaves."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from polling import wait_until
from regatta_agent.batch.checkpoints import Checkpoints
from regatta_agent.batch.journal import Journal, Progress, Settings
from regatta_protocol.errors import StorageFull

_SETTINGS = Settings(model="m", inputs=("x",), format="jsonl", top=0)


class _SlowJournal(Journal):
    """One whose disk syncs when it is told to, or fails."""

    def __init__(self, output: Path) -> None:
        super().__init__(output, _SETTINGS)
        self.asked = threading.Event()
        self.synced = threading.Event()
        self.error: Exception | None = None

    def keep(self, progress: Progress) -> None:
        self.asked.set()
        assert self.synced.wait(10.0)
        if self.error is not None:
            raise self.error
        super().keep(progress)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[_SlowJournal]:
    journal = _SlowJournal(tmp_path / "out.jsonl")
    journal.open(restart=False)
    yield journal
    journal.close()


def test_a_slow_disk_holds_up_nothing_and_what_came_meanwhile_counts_from_the_next(journal: _SlowJournal) -> None:
    """Records are appended while it syncs; after a kill then the job goes on behind those that it began with."""
    with Checkpoints(journal, 0.0) as checkpoints:
        journal.append(b"one\n", ["a"], 0)
        begun = checkpoints.go_on()
        assert journal.asked.wait(10.0)
        journal.append(b"two\n", ["b"], 0)
        journal.mark()
        meanwhile = checkpoints.go_on()
        journal.synced.set()
        wait_until(checkpoints.go_on, 10.0, "the first is finished", 0.001)
        left = journal.spool_path.read_bytes()
        checkpoints.finish()

    assert (begun, meanwhile, left) == (False, False, b"one\ntwo\n")
    assert journal.progress.records == 2
    journal.close()
    again = Journal(journal.spool_path.with_suffix(""), _SETTINGS)
    assert again.open(restart=False).records == 2
    again.close()


def test_a_kill_while_the_disk_syncs_leaves_the_last_checkpoint(journal: _SlowJournal) -> None:
    """The second one was begun and never ended: the job goes on behind the first."""
    journal.synced.set()
    with Checkpoints(journal, 0.0) as checkpoints:
        journal.append(b"one\n", ["a"], 0)
        checkpoints.go_on()
        checkpoints.finish()
    journal.append(b"two\n", ["b"], 0)
    journal.mark()
    journal.close()

    again = Journal(journal.spool_path.with_suffix(""), _SETTINGS)

    assert again.open(restart=False).records == 1
    assert again.spool_path.read_bytes() == b"one\n"
    again.close()


def test_a_full_disk_is_told_of_by_the_next_call(journal: _SlowJournal) -> None:
    """And by the end of the job when there is none."""
    journal.error = StorageFull("no space")
    journal.synced.set()
    with Checkpoints(journal, 0.0) as checkpoints:
        checkpoints.go_on()
        with pytest.raises(StorageFull):
            wait_until(checkpoints.go_on, 10.0, "it has failed", 0.001)
        checkpoints.go_on()
        with pytest.raises(StorageFull):
            checkpoints.finish()
        checkpoints.finish()
