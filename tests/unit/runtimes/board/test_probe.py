"""Board probing over small trees and this machine (test_boards.py has whole boards), and which candidates there are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from regatta_protocol.measurement import BoardFacts, Outcome
from regatta_runtimes.board.probe import probe_board
from regatta_runtimes.candidate import Candidate
from regatta_runtimes.race.enumerate import Entrant, default_threads, enumerate_candidates


def plant(root: Path, files: Mapping[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def test_an_empty_tree_gives_no_facts_and_no_error(tmp_path: Path) -> None:
    """Everything None."""
    assert probe_board(tmp_path) == BoardFacts()


def test_nonsense_is_no_fact(tmp_path: Path) -> None:
    """A thermal zone of 3,000 degrees, a memory size in words."""
    plant(tmp_path, {"sys/class/thermal/thermal_zone0/temp": "3000000", "proc/meminfo": "MemTotal: lots"})

    facts = probe_board(tmp_path)

    assert (facts.temperature_c, facts.memory_bytes) == (None, None)


def test_this_machine_can_be_probed() -> None:
    """The real root gives at least cores, memory and kernel."""
    facts = probe_board()

    assert facts.cores
    assert facts.memory_bytes
    assert facts.kernel


@pytest.mark.parametrize(
    ("cores", "threads"), [(None, (1,)), (1, (1,)), (2, (1, 2)), (4, (1, 2, 4)), (6, (1, 2, 4, 6)), (64, (1, 2, 4, 8))]
)
def test_thread_counts(cores: int | None, threads: tuple[int, ...]) -> None:
    """Powers of two and all cores, at most eight."""
    assert default_threads(cores) == threads


def test_candidates_are_runtime_by_variant_by_delegate_by_threads() -> None:
    """Two runtimes × two variants × two delegates × two thread counts, fewest threads first."""
    candidates, absent = enumerate_candidates(
        [Entrant("float32"), Entrant("int8")], {"litert": None, "tflite": None}, BoardFacts(), (1, 2)
    )

    assert len(set(candidates)) == 16
    assert [candidate.threads for candidate in candidates] == [1] * 8 + [2] * 8
    assert Candidate("tflite", "int8", "none", 2) in candidates
    assert absent == []


@pytest.mark.parametrize(
    ("requires", "accelerators", "words"),
    [
        ("edgetpu", (), "none was found here (accelerators found: none): plug in a Coral"),
        ("edgetpu", ("jetson",), "accelerators found: jetson"),
        ("edgetpu", ("coral-usb",), "coral-usb is here, but libedgetpu.so.1 was not found"),
        ("abacus", (), "does not know: update the agent or describe it"),
    ],
)
def test_a_variant_for_an_accelerator_is_explained(requires: str, accelerators: tuple[str, ...], words: str) -> None:
    """Absent, another one present, present without backend, unknown."""
    _, absent = enumerate_candidates(
        [Entrant("v", (requires,))], {"litert": None}, BoardFacts(accelerators=accelerators), (1,)
    )

    assert [result.outcome for result in absent] == [Outcome.UNAVAILABLE]
    assert words in (absent[0].reason or "")
