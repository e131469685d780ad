"""Finished steps are found by their key, whole or not at all, and the folder stays bounded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from regatta_fleet.optimize.recipe.cache import StepCache
from regatta_fleet.optimize.recipe.steps import Outcome, Product
from regatta_protocol.ids import Digest, digest_of_bytes

_KEYS = [digest_of_bytes(bytes([number])) for number in range(4)]


def _store(cache: StepCache, key: Digest, into: Path, size: int = 1000) -> Outcome:
    def make(folder: Path) -> Outcome:
        (folder / "m.tflite").write_bytes(key.encode()[:8] * (size // 8))
        return Outcome(products=(Product(name="int8", file="m.tflite"),))

    return cache.store(key, make, into)


def test_what_was_stored_is_fetched_as_a_copy(tmp_path: Path) -> None:
    cache = StepCache(tmp_path / "cache")
    stored = _store(cache, _KEYS[0], tmp_path / "a")

    fetched = cache.fetch(_KEYS[0], Outcome, tmp_path / "b")

    assert fetched == stored
    assert (tmp_path / "b/m.tflite").read_bytes() == (tmp_path / "a/m.tflite").read_bytes()
    assert cache.fetch(_KEYS[1], Outcome, tmp_path / "c") is None


def test_a_damaged_entry_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    cache = StepCache(tmp_path / "cache")
    _store(cache, _KEYS[0], tmp_path / "a")
    (tmp_path / "cache" / _KEYS[0] / "m.tflite").write_bytes(b"rot")

    assert cache.fetch(_KEYS[0], Outcome, tmp_path / "b") is None
    assert not (tmp_path / "b").exists()


def test_those_used_longest_ago_go_first(tmp_path: Path) -> None:
    cache = StepCache(tmp_path / "cache", limit_bytes=7000)
    for age, key in enumerate(_KEYS[:3]):
        _store(cache, key, tmp_path / key[:8], 2000)
        os.utime(tmp_path / "cache" / key, (100 + age, 100 + age))
    assert cache.fetch(_KEYS[0], Outcome, tmp_path / "used") is not None  # now it is the newest

    _store(cache, _KEYS[3], tmp_path / "last", 2000)

    left = {path.name for path in (tmp_path / "cache").iterdir()}
    assert left == {_KEYS[0], _KEYS[2], _KEYS[3]}


def test_a_step_that_fails_leaves_nothing(tmp_path: Path) -> None:
    cache = StepCache(tmp_path / "cache")

    def fail(folder: Path) -> Outcome:
        (folder / "half").write_bytes(b"x")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        cache.store(_KEYS[0], fail, tmp_path / "a")

    assert cache.fetch(_KEYS[0], Outcome, tmp_path / "b") is None
