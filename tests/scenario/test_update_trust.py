"""What a device believes on its way through an update: metadata, assignments and messages that are not the fleet's."""

from __future__ import annotations

from pathlib import Path

import pytest

from device_rig import DEVICE, Rig, installed
from regatta_protocol import topics
from regatta_protocol.codec import encode_zlib
from regatta_protocol.messages import Response, SignedAssignment


def test_expired_metadata_is_refused_while_the_old_version_serves(tmp_path: Path) -> None:
    """It is asked for again within the attempts, then the version fails with the reason."""
    rig = installed(tmp_path, max_attempts=3)
    rig.fleet.push(2)
    rig.fleet.expired = True
    rig.fleet.assign(2, "r2")

    assert rig.run(until=lambda: rig.state(2) == "failed", seconds=120)
    assert "expired" in (rig.install(2).reason or "")
    assert "given up after 3 attempts" in (rig.install(2).reason or "")
    assert rig.serving() == 1


def test_metadata_that_is_renewed_in_time_is_accepted(tmp_path: Path) -> None:
    """Expiry is no verdict on the version."""
    rig = Rig(tmp_path).start()
    rig.fleet.push(1)
    rig.fleet.expired = True
    rig.fleet.assign(1)
    assert rig.run(until=lambda: rig.install(1).attempt >= 1 if rig.state(1) != "unknown" else False)
    rig.fleet.expired = False

    assert rig.run(until=rig.committed(1), seconds=120)


@pytest.mark.parametrize("payload", [b"", b"\xff\x00", b"{", b"[]", b'{"payload": 3}', b"9" * 60_000])
def test_a_poison_message_changes_nothing(tmp_path: Path, payload: bytes) -> None:
    """Nonsense on every topic that the device hears leaves it serving, and the next true message is heard."""
    rig = installed(tmp_path)
    rig.fleet.push(2)
    for pattern in topics.device_filters(DEVICE):
        for retain in (False, True):
            rig.fleet.say(pattern.replace("+", "7"), payload, retain=retain)
    rig.run(2)
    assert rig.committed(1)()
    rig.fleet.assign(2, "r2")

    assert rig.run(until=rig.committed(2))


def test_an_assignment_with_a_wrong_signature_is_refused(tmp_path: Path) -> None:
    """What the fleet's key did not sign is never taken up; the reason is kept for `status`."""
    rig = installed(tmp_path)
    rig.fleet.publish(SignedAssignment(payload="{}", key_id="k", signature="forged"))
    rig.run(5)

    assert rig.loop.record.generation == 1
    assert rig.committed(1)()


def test_a_replayed_older_assignment_is_refused(tmp_path: Path) -> None:
    """The generation only grows."""
    rig = installed(tmp_path)
    old = rig.loop.record.signed
    assert old is not None
    rig.fleet.push(2)
    rig.fleet.assign(2, "r2")
    assert rig.run(until=rig.committed(2))
    rig.fleet.publish(old)
    rig.run(5)

    assert rig.loop.record.generation == 2
    assert rig.committed(2)()


def test_a_response_to_nobody_is_ignored(tmp_path: Path) -> None:
    """An answer with an unknown id does no harm."""
    rig = installed(tmp_path)
    rig.fleet.say(topics.response(DEVICE), encode_zlib(Response(id="who", files={})))
    rig.run(1)

    assert rig.committed(1)()
