"""The authority's side of signed metadata: whole after every kill, alive without offline keys, and small."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from killing import every_kill, killed_at
from regatta_protocol.codec import encode_zlib
from regatta_protocol.errors import Misuse, Rejected
from regatta_protocol.messages import Response
from regatta_provisioning.repository import MetadataRepository
from signed_fleet import DAY, FIRST, SECOND, START, Device, SignedFleet


def _load(folder: Path, now: float = START) -> MetadataRepository:
    return MetadataRepository.load(folder, clock=lambda: now)


def test_a_target_is_signed_once_and_never_changes(tmp_path: Path) -> None:
    fleet = SignedFleet(tmp_path)
    fleet.repository.add_target(FIRST, b"one")
    before = fleet.answer()
    fleet.repository.add_target(FIRST, b"one")

    assert fleet.answer() == before
    with pytest.raises(Rejected, match="publish it as a new version"):
        fleet.repository.add_target(FIRST, b"two")
    with pytest.raises(Rejected, match="no signed target"):
        fleet.answer(SECOND)


def test_private_keys_are_private(tmp_path: Path) -> None:
    SignedFleet(tmp_path, root_keys=2)

    keys = sorted((tmp_path / "keys").iterdir())
    assert sorted(path.name.split("-")[0] for path in keys) == ["root", "root", "snapshot", "targets", "timestamp"]
    assert {path.stat().st_mode & 0o777 for path in keys} == {0o600}
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700


def test_create_survives_a_kill_at_any_point(tmp_path: Path) -> None:
    def run(point: int) -> None:
        with killed_at(point):
            SignedFleet(tmp_path / str(point), root_keys=2)

    kills = every_kill(run)

    assert kills >= 18
    for point in range(kills):
        fleet = SignedFleet(tmp_path / str(point), root_keys=2)
        fleet.repository.add_target(FIRST, b"one")
        assert Device(tmp_path / f"device-{point}").pin(fleet.repository.root_json).verify(fleet.answer()).ok
        assert len(list((tmp_path / str(point) / "keys").glob("root-*"))) == 2


def test_add_target_survives_a_kill_at_any_point(tmp_path: Path) -> None:
    """Before: the old state, whole. Asked again: the new one. Never less than before."""
    fleet = SignedFleet(tmp_path / "fleet")
    fleet.repository.add_target(FIRST, b"one")
    device = Device(tmp_path / "device").pin(fleet.repository.root_json)

    def run(point: int) -> None:
        folder = tmp_path / str(point)
        shutil.copytree(tmp_path / "fleet", folder)
        try:
            with killed_at(point):
                _load(folder).add_target(SECOND, b"two")
        finally:
            again = _load(folder)
            assert device.verify(again.files_for(FIRST, 1)).ok
            again.add_target(SECOND, b"two")
            device.lose_metadata()
            device.floor = {}
            assert device.verify(again.files_for(SECOND, 1), SECOND).ok
            device.lose_metadata()
            device.floor = {}

    assert every_kill(run) == 6


def test_rotation_survives_a_kill_at_any_point(tmp_path: Path) -> None:
    fleet = SignedFleet(tmp_path / "fleet")
    fleet.repository.add_target(FIRST, b"one")
    root = fleet.repository.root_json

    def run(point: int) -> None:
        folder = tmp_path / str(point)
        shutil.copytree(tmp_path / "fleet", folder)
        try:
            with killed_at(point):
                _load(folder).rotate_online_keys()
        finally:
            again = _load(folder)
            assert Device(tmp_path / f"device-{point}").pin(root).verify(again.files_for(FIRST, 1)).ok

    assert every_kill(run) >= 8


def test_only_what_is_led_to_is_kept(tmp_path: Path) -> None:
    fleet = SignedFleet(tmp_path)
    for number in range(1, 30):
        fleet.repository.add_target(f"models/digits/{number}/manifest.json", b"%d" % number)

    names = {path.name for path in (tmp_path / "metadata").iterdir()}
    assert len([name for name in names if "bin-" in name]) <= 29
    assert len([name for name in names if "snapshot" in name]) == 1


def test_refresh_signs_anew_before_half_of_the_life_is_over(tmp_path: Path) -> None:
    fleet = SignedFleet(tmp_path / "fleet")
    fleet.repository.add_target(FIRST, b"one")
    device = Device(tmp_path / "device").pin(fleet.repository.root_json)
    before = fleet.answer()
    fleet.now = START + 3 * DAY
    assert fleet.repository.refresh_online() == ()
    assert fleet.answer() == before

    for _ in range(140):  # 420 days: root, targets and bins come round too
        fleet.now += 3 * DAY
        assert fleet.repository.refresh_online() == ()
        result = device.verify(fleet.answer(root_version=device.root_version), now=fleet.now)
        assert result.ok, result.reason


def test_without_offline_keys_all_goes_on_but_what_needs_them(tmp_path: Path) -> None:
    fleet = SignedFleet(tmp_path / "fleet")
    fleet.repository.add_target(FIRST, b"one")
    device = Device(tmp_path / "device").pin(fleet.repository.root_json)
    for path in (tmp_path / "fleet" / "keys").glob("*.pem"):
        if path.name.startswith(("root", "targets")):
            path.rename(tmp_path / path.name)

    repository = _load(tmp_path / "fleet", START + 5 * DAY)
    assert repository.refresh_online() == ()
    assert device.verify(repository.files_for(FIRST, 1), now=START + 11 * DAY).ok
    with pytest.raises(Misuse, match="mount its medium"):
        repository.add_target(SECOND, b"two")
    with pytest.raises(Misuse, match="mount its medium"):
        repository.rotate_online_keys()
    assert device.verify(repository.files_for(FIRST, 1), now=START + 11 * DAY).ok
    advice = _load(tmp_path / "fleet", START + 60 * DAY).refresh_online()
    assert len(advice) == 1
    assert "targets expire" in advice[0]


def test_an_answer_stays_within_a_message(tmp_path: Path) -> None:
    """2,000 versions. Bins are filled behind the repository's back: signing each takes 20 ms of syncing."""
    fleet = SignedFleet(tmp_path)
    fleet.repository.add_target(FIRST, b"one")
    name = fleet.repository._bin_of(FIRST)
    with fleet.repository._lock:
        snapshot = fleet.repository._snapshot()
        from tuf.api.metadata import TargetFile, Targets

        role = fleet.repository._load(name, Targets, 1)
        for number in range(2000 // 32 * 2):
            path = f"models/a-rather-long-model-name/{number}/manifest.json"
            role.targets[path] = TargetFile.from_data(path, b"%d" % number, ["sha256"])
        fleet.repository._commit_targets(snapshot, {name: role})

    assert len(encode_zlib(Response(id="1", files=fleet.answer()))) < 12_000


def test_damage_is_said_and_never_signed_over(tmp_path: Path) -> None:
    fleet = SignedFleet(tmp_path)
    fleet.repository.add_target(FIRST, b"one")
    snapshot = next((tmp_path / "metadata").glob("*.snapshot.json"))
    snapshot.write_bytes(b"")

    with pytest.raises(Misuse, match="damaged"):
        _load(tmp_path)
    with pytest.raises(Misuse, match="create the fleet first"):
        _load(tmp_path / "nothing")
    with pytest.raises(Misuse, match="1 or 2"):
        SignedFleet(tmp_path / "three", root_keys=3)
