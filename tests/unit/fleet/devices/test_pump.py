"""Chunks reach every device that asked, in turn, through a bus that refuses at times; nothing grows without bound."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from regatta_fleet.devices.pump import ChunkPump
from regatta_fleet.devices.sender import Sender
from regatta_fleet.models.blobs import BlobStore
from regatta_protocol.chunk import unpack_chunk
from regatta_protocol.codec import decode_zlib
from regatta_protocol.errors import Retryable
from regatta_protocol.ids import DeviceId, digest_of_bytes
from regatta_protocol.messages import Get, Response

DATA = bytes(range(256)) * 40  # ten chunks of 1 KiB
A, B = DeviceId("a"), DeviceId("b")


class _Bus:
    """Takes messages, or refuses the next `refusals` of them."""

    def __init__(self) -> None:
        self.sent: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self.refusals = 0
        self.gate = threading.Event()
        self.gate.set()

    def start(self) -> None:
        raise AssertionError

    def stop(self) -> None:
        raise AssertionError

    def publish(self, topic: str, payload: bytes, *, qos: Literal[0, 1] = 1, retain: bool = False) -> int:
        self.gate.wait(10)
        if self.refusals:
            self.refusals -= 1
            raise Retryable("full")
        assert qos == (0 if "chunk" in topic else 1)
        self.sent.put((topic, payload))
        return 1


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[tuple[_Bus, ChunkPump]]:
    blobs = BlobStore(tmp_path)
    blobs.prepare()
    blobs.put(DATA)
    bus = _Bus()
    pump = ChunkPump(bus, Sender(blobs.open))
    pump.start()
    yield bus, pump
    bus.gate.set()
    pump.stop()


def _get(transfer: int, digest: str | None = None) -> Get:
    return Get(transfer=transfer, digest=digest or digest_of_bytes(DATA), chunk_bytes=1024, ranges=((0, 10),))


def test_devices_are_served_in_turn(stage: tuple[_Bus, ChunkPump]) -> None:
    """A big model for one device does not make another wait; both get all of it."""
    bus, pump = stage
    bus.gate.clear()
    for device in (A, A, B):
        pump.take(device, _get(1))
    bus.gate.set()
    sent = [bus.sent.get(timeout=10) for _ in range(30)]

    assert "/b/" in "".join(topic for topic, _ in sent[:5])
    for device, times in ((A, 2), (B, 1)):
        chunks = [unpack_chunk(data) for topic, data in sent if f"/{device}/" in topic]
        assert b"".join(chunk.payload for chunk in chunks) == DATA * times


def test_a_bus_that_refuses_is_tried_again(stage: tuple[_Bus, ChunkPump]) -> None:
    """No chunk is left out."""
    bus, pump = stage
    bus.refusals = 3
    pump.take(A, _get(1))
    assert [unpack_chunk(bus.sent.get(timeout=10)[1]).index for _ in range(10)] == list(range(10))


def test_a_bus_that_refuses_for_long_drops_all(stage: tuple[_Bus, ChunkPump], monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is asked afterwards is sent."""
    monkeypatch.setattr("regatta_fleet.devices.pump._PATIENCE_TRIES", 2)
    bus, pump = stage
    bus.refusals = 2
    pump.take(A, _get(1))
    deadline = threading.Event()
    for _ in range(200):
        if bus.refusals == 0:
            break
        deadline.wait(0.05)
    pump.take(B, _get(2))

    assert "/b/" in bus.sent.get(timeout=10)[0]


def test_a_missing_blob_is_answered(stage: tuple[_Bus, ChunkPump]) -> None:
    """With words, under the transfer's name."""
    bus, pump = stage
    pump.take(A, _get(9, digest_of_bytes(b"none")))
    topic, data = bus.sent.get(timeout=10)
    answer = decode_zlib(Response, data)

    assert topic == "rg/d/a/dn/response"
    assert answer.id == "get-9"
    assert answer.error


def test_one_device_cannot_fill_the_memory(stage: tuple[_Bus, ChunkPump]) -> None:
    """What is over its share is dropped."""
    bus, pump = stage
    bus.gate.clear()
    for number in range(5000):
        pump.take(A, _get(number))
    bus.gate.set()
    topics = set()
    with pytest.raises(queue.Empty):
        while True:
            topics.add(bus.sent.get(timeout=0.5)[0])

    assert 0 < len(topics) <= 30
