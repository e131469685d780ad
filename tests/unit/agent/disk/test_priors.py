"""Race results by key on disk: found again, bounded, and never trusted to be whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from regatta_agent.disk.priors import Priors
from regatta_protocol.codec import encode
from regatta_protocol.ids import Digest, digest_of_bytes
from regatta_protocol.measurement import BoardFacts, PriorRace, RaceReport


def key_of(number: int) -> Digest:
    return digest_of_bytes(str(number).encode())


def prior(number: int, reason: str = "r") -> PriorRace:
    report = RaceReport(
        model="m", version=1, board=BoardFacts(), candidates=(), reason=reason, duration_s=1, key=key_of(number)
    )
    return PriorRace.model_validate({"device": "d", "at": 1.0, "report": report})


def keep_all(priors: Priors, folder: Path, numbers: range) -> None:
    """Keep results, a second apart."""
    for number in numbers:
        priors.keep(prior(number))
        os.utime(folder / "priors" / f"{key_of(number)}.json", (number, number))


def test_a_result_is_found_by_its_key_after_a_restart(tmp_path: Path) -> None:
    """And a newer one takes its place."""
    Priors(tmp_path).keep(prior(1))
    Priors(tmp_path).keep(prior(1, "newer"))

    assert Priors(tmp_path).find(key_of(1)) == prior(1, "newer")
    assert Priors(tmp_path).find(key_of(2)) is None


def test_the_oldest_go_first(tmp_path: Path) -> None:
    """By count."""
    priors = Priors(tmp_path, max_entries=3)

    keep_all(priors, tmp_path, range(1, 6))

    assert [number for number in range(1, 6) if priors.find(key_of(number))] == [3, 4, 5]


def test_bytes_are_bounded(tmp_path: Path) -> None:
    """However small the limit, the newest stays."""
    priors = Priors(tmp_path, max_bytes=2 * len(encode(prior(1))) + 10)

    keep_all(priors, tmp_path, range(1, 6))

    assert [number for number in range(1, 6) if priors.find(key_of(number))] == [4, 5]
    Priors(tmp_path, max_bytes=1).keep(prior(9))
    assert [path.stem for path in (tmp_path / "priors").iterdir()] == [key_of(9)]


@pytest.mark.parametrize("damage", [b"", b"{", b"\x00" * 100, b'{"device": "d"}', encode(prior(2))])
def test_a_damaged_entry_is_removed(tmp_path: Path, damage: bytes) -> None:
    """Cut off, overwritten, or holding another key's result: the race is run in full, and nothing is raised."""
    Priors(tmp_path).keep(prior(1))
    path = tmp_path / "priors" / f"{key_of(1)}.json"
    path.write_bytes(damage)

    assert Priors(tmp_path).find(key_of(1)) is None
    assert not path.exists()


def test_what_a_cut_left_half_written_is_cleared(tmp_path: Path) -> None:
    """With the next result."""
    (tmp_path / "priors").mkdir()
    leftover = tmp_path / "priors" / f".{key_of(1)}.json.77.tmp"
    leftover.write_bytes(b"half")

    Priors(tmp_path).keep(prior(2))

    assert not leftover.exists()


def test_a_folder_that_takes_nothing_costs_the_result_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and the race that it came from goes on."""
    (tmp_path / "priors").write_bytes(b"a file in the folder's place")

    Priors(tmp_path).keep(prior(1))

    assert Priors(tmp_path).find(key_of(1)) is None
    assert "event=prior_lost" in caplog.text
