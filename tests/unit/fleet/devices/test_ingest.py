"""Nothing that a device sends stops the server, speaks for another, or is believed from a stranger."""

from __future__ import annotations

import logging

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fleet_parts import SimulatedFleet
from regatta_fleet.database import devices
from regatta_fleet.devices.ingest import Asked, Stored, Wanted
from regatta_protocol.bus import Message
from regatta_protocol.codec import MAX_PAYLOAD_BYTES, encode, encode_zlib
from regatta_protocol.ids import DeviceId, digest_of_bytes
from regatta_protocol.messages import Get, Presence, Reported, Request, TelemetryBatch
from regatta_protocol.topics import Up, up

PI, OTHER = DeviceId("pi"), DeviceId("other")


@pytest.fixture
def fleet() -> SimulatedFleet:
    fleet = SimulatedFleet()
    fleet.enroll("pi", "other")
    return fleet


def _reported(device: DeviceId, sequence: int = 1) -> bytes:
    return encode(Reported(device=device, generation=0, sequence=sequence, agent_version="0", boot="b"))


def test_each_kind_of_message_is_taken(fleet: SimulatedFleet) -> None:
    """Facts are stored; questions come back for the controller."""
    take = fleet.ingest.take
    get = Get(transfer=1, digest=digest_of_bytes(b""), chunk_bytes=1024, ranges=((0, 1),))
    request = Request(id="1", method="metadata")
    batch = TelemetryBatch(id="batch-0001", device=PI, dropped=3, items=())

    assert take(Message(up(PI, Up.STATE), encode(Presence(up=True))), 5) == Stored(PI)
    assert take(Message(up(PI, Up.REPORTED), _reported(PI)), 5) == Stored(PI)
    assert take(Message(up(PI, Up.TELEMETRY), encode_zlib(batch)), 5) == Stored(PI)
    assert take(Message(up(PI, Up.TELEMETRY), encode_zlib(batch)), 5) is None
    assert take(Message(up(PI, Up.REQUEST), encode(request)), 5) == Asked(PI, request)
    assert take(Message(up(PI, Up.GET), encode(get)), 5) == Wanted(PI, get)
    assert fleet.ingest.counts == {"accepted": 6, "repeated": 1}
    with fleet.database.read() as tx:
        row = devices.get_device(tx, PI)
    assert row is not None
    assert row.up
    assert row.last_seen == 5
    assert row.dropped_items == 3


@pytest.mark.parametrize("kind", [Up.REPORTED, Up.TELEMETRY])
def test_a_device_speaks_only_for_itself(fleet: SimulatedFleet, kind: Up) -> None:
    """The topic, which the broker ties to the certificate, must name the device of the message."""
    batch = TelemetryBatch(id="batch-0001", device=OTHER, items=())
    payload = _reported(OTHER) if kind is Up.REPORTED else encode_zlib(batch)

    assert fleet.ingest.take(Message(up(PI, kind), payload), 5) is None
    assert fleet.ingest.counts == {"poison": 1}
    with fleet.database.read() as tx:
        row = devices.get_device(tx, OTHER)
    assert row is not None
    assert row.last_seen is None


def test_strangers_and_revoked_devices_are_ignored(fleet: SimulatedFleet) -> None:
    """And counted; a device that was taken as known is forgotten when it is revoked."""
    state = encode(Presence(up=True))
    assert fleet.ingest.take(Message(up(PI, Up.STATE), state), 5) is not None
    with fleet.database.write() as tx:
        devices.revoke_device(tx, PI, 6)
    fleet.ingest.forget(PI)

    assert fleet.ingest.take(Message(up(PI, Up.STATE), state), 7) is None
    assert fleet.ingest.take(Message(up(DeviceId("stranger"), Up.STATE), state), 7) is None
    assert fleet.ingest.counts["ignored"] == 2


def test_poison_is_logged_once(fleet: SimulatedFleet, caplog: pytest.LogCaptureFixture) -> None:
    """For each device and kind; every one is counted, and the next good message is taken."""
    with caplog.at_level(logging.WARNING):
        for payload in (b"{", b"\x00\xff", b"[" * 60_000, b"x" * (MAX_PAYLOAD_BYTES + 1), b'{"up": 1e999}'):
            assert fleet.ingest.take(Message(up(PI, Up.REPORTED), payload), 5) is None
        for topic in ("rg/d/pi/up", "rg/d/PI/up/state", "rg/d/pi/up/unknown", "", "a/b/c/d/e", "rg/d/pi/dn/desired"):
            assert fleet.ingest.take(Message(topic, b"{}"), 5) is None

    assert fleet.ingest.counts == {"poison": 11}
    assert len([record for record in caplog.records if "topic=rg/d/pi/up/reported" in record.message]) == 1
    assert fleet.ingest.take(Message(up(PI, Up.REPORTED), _reported(PI)), 5) == Stored(PI)


def test_a_cleared_retained_message_is_nothing(fleet: SimulatedFleet) -> None:
    """An empty payload is the broker's way to say so."""
    assert fleet.ingest.take(Message(up(PI, Up.STATE), b"", retained=True), 5) is None
    assert fleet.ingest.counts == {}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(kind=st.sampled_from(Up), payload=st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_no_bytes_raise(fleet: SimulatedFleet, kind: Up, payload: bytes) -> None:
    """Whatever they are."""
    fleet.ingest.take(Message(up(PI, kind), payload), 5)
