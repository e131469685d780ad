"""Bytes by cause: every byte is counted once, and under what it was spent on."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regatta_protocol import topics
from regatta_protocol.ids import DeviceId
from regatta_protocol.traffic import Amount, Cause, Ledger, Meter, cause_of, read_tcp_totals

DEVICE = DeviceId("pi-one")
_STEPS = st.lists(
    st.tuples(
        st.lists(st.tuples(st.sampled_from(Cause), st.integers(1, 70_000)), max_size=4),
        st.integers(0, 200_000),
        st.integers(0, 200_000),
    ),
    max_size=20,
)


@pytest.mark.parametrize(
    ("topic", "cause"),
    [
        (topics.up(DEVICE, topics.Up.STATE), Cause.PRESENCE),
        (topics.up(DEVICE, topics.Up.REPORTED), Cause.REPORTS),
        (topics.up(DEVICE, topics.Up.TELEMETRY), Cause.TELEMETRY),
        (topics.up(DEVICE, topics.Up.REQUEST), Cause.METADATA),
        (topics.response(DEVICE), Cause.METADATA),
        (topics.up(DEVICE, topics.Up.GET), Cause.TRANSFER),
        (topics.chunk(DEVICE, 7), Cause.TRANSFER),
        (topics.desired(DEVICE), Cause.ASSIGNMENT),
        ("a/smart/plug", Cause.OTHER),
        ("", Cause.OTHER),
    ],
)
def test_every_topic_has_its_cause(topic: str, cause: Cause) -> None:
    """None of ours is "other"."""
    assert cause_of(topic) is cause


@given(_STEPS)
def test_the_sums_are_what_the_kernel_counted(steps: list[tuple[list[tuple[Cause, int]], int, int]]) -> None:
    """Whatever the packets, no byte is lost, doubled or rounded away, once the connection has ended."""
    ledger = Ledger({Cause.OTHER: Amount(5, 7)})
    meter = Meter(ledger)
    totals = Amount()
    for noted, sent, received in steps:
        for cause, size_bytes in noted:
            meter.sent(cause, size_bytes)
            meter.received(cause, size_bytes)
        totals += Amount(sent, received)
        meter.settle(totals)
    meter.settle(totals, rest=Cause.CONNECTION)
    counted = sum(ledger.totals().values(), Amount())

    assert counted == totals + Amount(5, 7)


def test_the_handshake_is_the_connection_and_each_packet_its_own() -> None:
    """What comes before the first message is not put on that message."""
    ledger = Ledger()
    meter = Meter(ledger)
    meter.received(Cause.ASSIGNMENT, 700)  # retained, it comes right behind SUBACK
    meter.settle(Amount(2000, 4000), rest=Cause.CONNECTION)
    meter.sent(Cause.PRESENCE, 100)
    meter.settle(Amount(2160, 4052))
    meter.received(Cause.PRESENCE, 26)
    meter.settle(Amount(2212, 4130))
    meter.sent(Cause.REPORTS, 300)
    meter.sent(Cause.TELEMETRY, 100)
    meter.settle(Amount(2664, 4130))

    assert ledger.totals() == {
        Cause.CONNECTION: Amount(2000, 3300),
        Cause.ASSIGNMENT: Amount(0, 700),
        Cause.PRESENCE: Amount(160, 130),
        Cause.REPORTS: Amount(378, 0),  # the acknowledgement of 52 bytes between goes to what was sent next
        Cause.TELEMETRY: Amount(126, 0),
    }


def test_without_the_kernel_packets_count_as_they_are() -> None:
    """An old kernel leaves a lower bound, and no crash."""
    ledger = Ledger()
    meter = Meter(ledger)
    for _ in range(2):
        meter.sent(Cause.PRESENCE, 100)
        meter.settle(None)
    meter.settle(None, rest=Cause.CONNECTION)

    assert ledger.totals() == {Cause.PRESENCE: Amount(200, 0)}


def test_the_kernel_counts_payload_and_headers() -> None:
    """1,000 bytes over a real connection are 1,000 and the headers of a few segments."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        accepted, _ = server.accept()
        with accepted:
            client.sendall(b"x" * 1000)
            accepted.recv(2000)
            totals = read_tcp_totals(client)

    assert totals is not None
    assert 1000 + 2 * 52 <= totals.sent <= 1000 + 6 * 52
    assert 52 <= totals.received <= 6 * 52
