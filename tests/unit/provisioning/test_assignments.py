"""Signed assignments: only the fleet's, only for this device, only unchanged."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from killing import every_kill, killed_at
from regatta_protocol.errors import Misuse, Untrusted
from regatta_protocol.ids import DeviceId, ModelName
from regatta_protocol.messages import Assignment, DesiredModel, SignedAssignment
from regatta_provisioning.assignments import AssignmentKey, verify_assignment

PI = DeviceId("pi-1")


def _assignment(**changes: object) -> Assignment:
    whole = Assignment(
        fleet="lab",
        device=PI,
        generation=7,
        issued_at=1.5,
        models={ModelName("digits"): DesiredModel(version=2)},
    )
    return whole.model_copy(update=changes)


def _verify(signed: SignedAssignment, key: AssignmentKey) -> Assignment:
    return verify_assignment(signed, key.public_key_b64, key.key_id, "lab", PI)


@pytest.fixture
def key(tmp_path: Path) -> AssignmentKey:
    return AssignmentKey.create(tmp_path / "keys")


def test_what_was_signed_is_what_is_read(key: AssignmentKey) -> None:
    assert _verify(key.sign(_assignment()), key) == _assignment()


def test_fields_of_a_newer_server_survive(key: AssignmentKey) -> None:
    newer = Assignment.model_validate({**_assignment().model_dump(), "window": "02:00"})

    assert _verify(key.sign(newer), key).model_dump()["window"] == "02:00"


def test_every_changed_byte_is_refused(key: AssignmentKey) -> None:
    signed = key.sign(_assignment())
    for place in range(0, len(signed.payload), 7):
        letter = "x" if signed.payload[place] != "x" else "y"
        forged = signed.payload[:place] + letter + signed.payload[place + 1 :]

        with pytest.raises(Untrusted, match="changed on its way"):
            _verify(signed.model_copy(update={"payload": forged}), key)


@pytest.mark.parametrize("signature", ["", "no base64!", base64.b64encode(bytes(64)).decode(), "AAAA"])
def test_a_forged_signature_is_refused(key: AssignmentKey, signature: str) -> None:
    with pytest.raises(Untrusted, match="signature"):
        _verify(key.sign(_assignment()).model_copy(update={"signature": signature}), key)


def test_another_key_is_refused_even_under_our_keys_name(key: AssignmentKey, tmp_path: Path) -> None:
    other = AssignmentKey.create(tmp_path / "other").sign(_assignment())

    with pytest.raises(Untrusted, match="is signed by key"):
        _verify(other, key)
    with pytest.raises(Untrusted, match="signature"):
        _verify(other.model_copy(update={"key_id": key.key_id}), key)


def test_another_fleet_and_another_device_are_refused(key: AssignmentKey) -> None:
    with pytest.raises(Untrusted, match="of fleet 'field'"):
        _verify(key.sign(_assignment(fleet="field")), key)
    with pytest.raises(Untrusted, match="for device 'pi-2'"):
        _verify(key.sign(_assignment(device=DeviceId("pi-2"))), key)


def test_a_signed_text_that_is_no_assignment_is_refused(key: AssignmentKey) -> None:
    broken = _assignment(generation=-1)

    with pytest.raises(Untrusted, match=r"not understood.*generation"):
        _verify(key.sign(broken), key)


def test_a_damaged_pinned_key_is_our_own_fault(key: AssignmentKey) -> None:
    with pytest.raises(Misuse, match="enrol this device again"):
        verify_assignment(key.sign(_assignment()), "AAAA", key.key_id, "lab", PI)


def test_a_key_is_private_and_outlives_a_kill_while_it_is_made(tmp_path: Path) -> None:
    def run(point: int) -> None:
        folder = tmp_path / str(point)
        with killed_at(point):
            made = AssignmentKey.create(folder)
        assert AssignmentKey.load(folder).key_id == AssignmentKey.create(folder).key_id == made.key_id

    assert every_kill(run) >= 3
    (path,) = (tmp_path / "3").glob("*.pem")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert AssignmentKey.create(tmp_path / "0").key_id == AssignmentKey.load(tmp_path / "0").key_id


def test_missing_and_damaged_key_files_say_so(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="is not here"):
        AssignmentKey.load(tmp_path)
    (tmp_path / "assignment.pem").write_bytes(bytes(120))
    with pytest.raises(Misuse, match="no readable private key"):
        AssignmentKey.load(tmp_path)
