"""The device's side of signed metadata: every refusal of docs/adr/0002-signed-metadata.md, and every recovery."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from killing import every_kill, killed_at
from regatta_provisioning.verifying import VerifyResult
from signed_fleet import DAY, FIRST, SECOND, START, Device, SignedFleet

YEAR = 365 * DAY


@dataclass
class Scene:
    """A fleet with two targets, and a device that has verified the first of them."""

    fleet: SignedFleet
    device: Device
    old: dict[str, str]  # the answer from before the second target


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    fleet = SignedFleet(tmp_path / "fleet", root_keys=2)
    fleet.repository.add_target(FIRST, b"one")
    old = fleet.answer()
    fleet.repository.add_target(SECOND, b"two")
    device = Device(tmp_path / "device").pin(fleet.repository.root_json)
    assert device.verify(fleet.answer()).ok
    yield Scene(fleet, device, old)


def _refused(result: VerifyResult, family: str, *words: str) -> None:
    assert not result.ok
    assert result.family == family, result.reason
    assert not result.targets
    for word in words:
        assert word in (result.reason or ""), result.reason


def test_a_signed_target_is_promised(scene: Scene) -> None:
    result = scene.device.verify(scene.fleet.answer(SECOND), SECOND)

    assert result.targets[SECOND].length == 3
    assert result.targets[SECOND].sha256 == hashlib.sha256(b"two").hexdigest()
    assert result.versions["timestamp"] == 3
    assert result.root_version == 1


def test_another_fleets_metadata_are_refused(scene: Scene, tmp_path: Path) -> None:
    other = SignedFleet(tmp_path / "other")
    other.repository.add_target(FIRST, b"bad")

    _refused(scene.device.verify(other.answer()), "untrusted", "not what the fleet signed")
    _refused(Device(tmp_path / "new").pin(scene.fleet.repository.root_json).verify(other.answer()), "untrusted")


def test_a_stolen_online_key_cannot_add_a_target(scene: Scene, tmp_path: Path) -> None:
    """The thief signs a new list of bins and a new bin with keys of his own, then snapshot and timestamp rightly."""
    forger = SignedFleet(tmp_path / "forger", root_keys=2)
    stolen = tmp_path / "stolen"
    shutil.copytree(scene.fleet.folder, stolen)
    for path in (stolen / "keys").glob("targets-*"):
        path.unlink()
        shutil.copy(next((forger.folder / "keys").glob("targets-*")), path)
    thief = SignedFleet(stolen)
    thief.repository.add_target("models/digits/3/manifest.json", b"bad")

    answer = thief.answer("models/digits/3/manifest.json")
    _refused(scene.device.verify(answer, "models/digits/3/manifest.json"), "untrusted", "signed by 0/1 keys")


def test_a_stolen_online_key_cannot_make_a_root(scene: Scene, tmp_path: Path) -> None:
    forger = SignedFleet(tmp_path / "forger", root_keys=2)
    forger.repository.add_target(FIRST, b"bad")
    forger.repository.rotate_online_keys()

    _refused(scene.device.verify(forger.answer(root_version=1)), "untrusted", "root was signed by 0/2 keys")


@pytest.mark.parametrize(("days", "role"), [(8, "timestamp.json"), (100, "timestamp.json"), (3650, "root.json")])
def test_expired_metadata_are_refused(scene: Scene, days: int, role: str) -> None:
    """By the clock that the agent gives: ahead of the real one here, so python-tuf's own was not asked."""
    result = scene.device.verify(scene.fleet.answer(), now=START + days * DAY)

    _refused(result, "expired", role, "this clock is wrong")


def test_the_agents_clock_decides_and_not_the_machines(scene: Scene) -> None:
    scene.fleet.now = START + 30 * YEAR
    scene.fleet.repository.refresh_online()

    _refused(scene.device.verify(scene.old, now=START + 30 * YEAR), "expired")
    result = scene.device.verify(scene.fleet.answer(root_version=1), now=START + 30 * YEAR)
    assert result.ok, result.reason


def test_no_clock_at_boot_is_survived(scene: Scene) -> None:
    assert scene.device.verify(scene.fleet.answer(), now=0.0).ok


def test_an_old_state_is_refused(scene: Scene) -> None:
    _refused(scene.device.verify(scene.old), "untrusted")

    assert scene.device.verify(scene.fleet.answer()).ok


@pytest.mark.parametrize("loss", [Device.zero_metadata, Device.lose_metadata])
def test_an_old_state_is_refused_when_all_local_metadata_are_lost(scene: Scene, loss: object) -> None:
    assert callable(loss)
    loss(scene.device)

    _refused(scene.device.verify(scene.old), "untrusted", "old state", "has seen 3")
    assert scene.device.verify(scene.fleet.answer()).ok
    loss(scene.device)
    assert scene.device.verify(scene.fleet.answer()).ok


def test_python_tuf_alone_would_accept_it(scene: Scene) -> None:
    """Why the floor exists; when this fails, python-tuf has learnt it."""
    scene.device.zero_metadata()
    scene.device.floor = {}

    assert scene.device.verify(scene.old).ok


def test_a_bin_never_goes_back(scene: Scene) -> None:
    """Also when the thief of the online keys signs a snapshot that leads to an old bin."""
    device, fleet = scene.device, scene.fleet
    third = next(
        path for n in range(3, 999) if _bin(fleet, path := f"models/digits/{n}/manifest.json") == _bin(fleet, FIRST)
    )
    before = {name: text for name, text in fleet.answer().items() if "bin-" in name}
    fleet.repository.add_target(third, b"three")
    assert device.verify(fleet.answer()).ok
    ((name, text),) = before.items()
    snapshot = fleet.repository._snapshot()
    snapshot.meta[name.partition(".")[2]].version = int(name.partition(".")[0])
    (fleet.folder / "metadata" / name).write_text(text)
    fleet.repository._commit_snapshot(snapshot)
    device.lose_metadata()

    _refused(device.verify(fleet.answer()), "untrusted", "bin-", "old state")


def _bin(fleet: SignedFleet, path: str) -> str:
    return fleet.repository._bin_of(path)


def test_a_mix_of_two_states_is_refused(scene: Scene, tmp_path: Path) -> None:
    """Old files under the names that the new timestamp leads to."""
    new = scene.fleet.answer()
    for part in ("snapshot", "bin-"):
        (old_name,) = [name for name in scene.old if part in name]
        (new_name,) = [name for name in new if part in name]
        if scene.old[old_name] == new[new_name]:
            continue
        mixed = {**new, new_name: scene.old[old_name]}
        fresh = Device(tmp_path / part).pin(scene.fleet.repository.root_json)

        _refused(fresh.verify(mixed), "untrusted", "not what the fleet signed")
    fresh = Device(tmp_path / "timestamp").pin(scene.fleet.repository.root_json)
    assert not fresh.verify({**new, "timestamp.json": scene.old["timestamp.json"]}).ok


def test_a_missing_file_is_asked_for_again(scene: Scene, tmp_path: Path) -> None:
    whole = scene.fleet.answer()
    for number, name in enumerate(whole):
        part = {other: text for other, text in whole.items() if other != name}
        fresh = Device(tmp_path / str(number)).pin(scene.fleet.repository.root_json)

        _refused(fresh.verify(part), "retryable", name)
        assert fresh.verify(whole).ok


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_changed_byte_is_believed(
    scene: Scene, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """White space outside of what is signed may change; then the promise is the same."""
    whole = scene.fleet.answer()
    name = data.draw(st.sampled_from(sorted(whole)))
    place = data.draw(st.integers(0, len(whole[name]) - 1))
    letter = data.draw(st.sampled_from('\0 {}[]",0az\x7f\u20ac'))
    changed = whole[name][:place] + letter + whole[name][place + 1 :]
    fresh = Device(tmp_path_factory.mktemp("device")).pin(scene.fleet.repository.root_json)

    result = fresh.verify({**whole, name: changed})

    if result.ok:
        assert json.loads(changed) == json.loads(whole[name]) or "signatures" in changed
        assert result.targets[FIRST].sha256 == hashlib.sha256(b"one").hexdigest()
    else:
        assert result.family in ("untrusted", "retryable")


@pytest.mark.parametrize(
    "junk", [b"", b"\0" * 400, b"{}", b"[" * 100_000, b'{"signed": {}, "signatures": []}', b"\xff"]
)
def test_damaged_local_metadata_are_fetched_anew(scene: Scene, junk: bytes) -> None:
    for path in sorted(scene.device.trust_dir.rglob("*.json")):
        path.write_bytes(junk)
        result = scene.device.verify(scene.fleet.answer())

        assert result.ok, (path.name, result.reason)
        _refused(scene.device.verify(scene.old), "untrusted")


def test_a_name_that_was_never_signed_is_refused(scene: Scene) -> None:
    nothing = "models/none/1/manifest.json"

    result = scene.device.verify(scene.fleet.answer(), nothing)
    assert not result.ok
    assert result.family in ("untrusted", "retryable")  # retryable: its bin is not in this answer
    same_bin = next(
        path
        for n in range(999)
        if _bin(scene.fleet, path := f"models/none/{n}/manifest.json") == _bin(scene.fleet, FIRST)
    )
    _refused(scene.device.verify(scene.fleet.answer(), same_bin), "untrusted", "signed nothing called")


def test_new_roots_are_followed_and_lost_ones_asked_for(scene: Scene) -> None:
    device, fleet = scene.device, scene.fleet
    for _ in range(2):
        fleet.repository.rotate_online_keys()
    assert device.verify(fleet.answer(root_version=1)).root_version == 3
    assert device.verify(fleet.answer(root_version=3)).ok

    device.zero_metadata()
    _refused(device.verify(fleet.answer(root_version=3)), "retryable", "has seen root 3", "from root 1 on")

    assert device.root_version == 1
    assert device.verify(fleet.answer(root_version=device.root_version)).root_version == 3


def test_after_a_theft_versions_may_start_again_with_new_keys(scene: Scene) -> None:
    """TUF 5.3.11: the thief used up the high numbers; the root's keys take the device back."""
    device, fleet = scene.device, scene.fleet
    honest = (fleet.folder / "metadata", fleet.folder.parent / "backup")
    shutil.copytree(*honest)
    for _ in range(5):
        fleet.repository._commit_snapshot(fleet.repository._snapshot())
    assert device.verify(fleet.answer()).ok
    high = device.floor["timestamp"]
    shutil.rmtree(honest[0])
    shutil.copytree(honest[1], honest[0])

    _refused(device.verify(fleet.answer()), "untrusted")
    fleet.repository.rotate_online_keys()
    result = device.verify(fleet.answer(root_version=1))

    assert result.ok, result.reason
    assert result.versions["timestamp"] < high


@pytest.mark.parametrize("role", ["timestamp", "snapshot"])
def test_a_new_key_of_one_online_role_frees_both(scene: Scene, role: str) -> None:
    """A stolen timestamp key alone can name a high version of snapshot, and the other way round."""
    device, fleet = scene.device, scene.fleet
    device.floor = {**device.floor, "timestamp": 900, "snapshot": 900}
    device.lose_metadata()
    root = fleet.repository._root()
    (key_id,) = root.roles[role].keyids
    root.revoke_key(key_id, role)
    root.add_key(fleet.repository._new_key(role), role)
    fleet.repository._commit_root(root)
    fleet.repository._complete()

    result = device.verify(fleet.answer(root_version=1))

    assert result.ok, result.reason
    assert result.versions["timestamp"] < 900
    assert result.versions["targets"] == 1


def test_a_kill_at_any_point_leaves_a_device_that_goes_on(scene: Scene, tmp_path: Path) -> None:
    scene.fleet.repository.rotate_online_keys()
    answer = scene.fleet.answer(SECOND, root_version=1)

    def run(point: int) -> None:
        device = Device(tmp_path / f"killed-{point}", floor=scene.device.floor)
        device.pin(scene.device.root_path.read_text())
        shutil.copytree(scene.device.trust_dir, device.trust_dir)
        try:
            with killed_at(point):
                device.verify(answer, SECOND)
        finally:
            _refused(device.verify(scene.old), "untrusted")
            again = device.verify(answer, SECOND)
            assert again.ok, again.reason

    assert every_kill(run) >= 6


def test_what_is_there_is_not_written_again(scene: Scene) -> None:
    """Flash wears; and python-tuf's own link to the newest root, which cannot be made in one step, is not made."""
    before = {path: path.stat().st_ino for path in scene.device.trust_dir.rglob("*")}
    assert scene.device.verify(scene.fleet.answer()).ok

    assert {path: path.stat().st_ino for path in scene.device.trust_dir.rglob("*")} == before
    assert not (scene.device.trust_dir / "root.json").exists()


def test_a_full_disk_is_waited_for(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    scene.fleet.repository.rotate_online_keys()
    answer = scene.fleet.answer(root_version=1)
    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        _refused(scene.device.verify(answer), "storage_full", "no space left")

    assert scene.device.verify(answer).ok


def test_a_lost_or_damaged_pinned_root_is_said(scene: Scene) -> None:
    scene.device.root_path.write_bytes(b"")
    _refused(scene.device.verify(scene.fleet.answer()), "misuse", "enrol again")
    scene.device.root_path.unlink()
    _refused(scene.device.verify(scene.fleet.answer()), "misuse", "is missing")
