"""What every bus promises, asked of the real one on a real Mosquitto and of the one in memory alike."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol, TypeVar

import pytest

from fault_proxy import FaultProxy
from mosquitto import Wire, running_wire
from regatta_protocol.bus import Bus, Connected, Disconnected, Event, Message, Published, Will
from regatta_protocol.codec import MAX_PAYLOAD_BYTES
from regatta_protocol.errors import Misuse, Retryable, TooLarge
from regatta_protocol.mqtt import MqttBus
from regatta_protocol.testing import MemoryBroker, MemoryBus

DEADLINE_S = 15.0
SERVER = "regatta-server"

E = TypeVar("E")


class CountingBus(Bus, Protocol):
    """A bus with the counters that both implementations have."""

    @property
    def bytes_received(self) -> int: ...
    @property
    def bytes_sent(self) -> int: ...
    @property
    def dropped(self) -> int: ...


class Client:
    """A bus with its inbox, and how to wait for what comes in."""

    def __init__(self, bus: CountingBus, inbox: queue.Queue[Event], nudge: Callable[[], None]) -> None:
        self.bus = bus
        self.inbox = inbox
        self._nudge = nudge

    def expect(self, kind: type[E]) -> E:
        """Return the next event, which must be of this kind."""
        event = self.next()
        assert isinstance(event, kind), f"wanted {kind.__name__}, got {event}"
        return event

    def next(self, deadline: float | None = None) -> Event:
        deadline = deadline or time.monotonic() + DEADLINE_S
        while True:
            try:
                return self.inbox.get(timeout=0.02)
            except queue.Empty:
                assert time.monotonic() < deadline, "no event came"
            self._nudge()

    def until(self, kind: type[E]) -> E:
        """Return the next event of this kind, whatever comes before it."""
        deadline = time.monotonic() + DEADLINE_S
        while not isinstance(event := self.next(deadline), kind):
            assert time.monotonic() < deadline, f"no {kind.__name__} came"
        return event


class Harness(Protocol):
    """A broker of one kind or the other."""

    def client(
        self, name: str, *filters: str, will: Will | None = None, length: int = 1000, clean_session: bool = False
    ) -> Client: ...
    def cut(self, name: str) -> None: ...
    def kill_broker(self) -> None: ...
    def bring_broker_back(self) -> None: ...


class MemoryHarness:
    def __init__(self) -> None:
        self.broker = MemoryBroker()
        self.buses: list[MemoryBus] = []

    def client(
        self, name: str, *filters: str, will: Will | None = None, length: int = 1000, clean_session: bool = False
    ) -> Client:
        inbox: queue.Queue[Event] = queue.Queue(length)
        bus = MemoryBus(self.broker, name, inbox, filters, will, clean_session=clean_session)
        self.buses.append(bus)
        return Client(bus, inbox, self.nudge)

    def nudge(self) -> None:
        """Do what time does on a real network: deliver what is under way, and connect again."""
        self.broker.deliver()
        for bus in self.buses:
            bus.connect()

    def cut(self, name: str) -> None:
        self.broker.cut(name)

    def kill_broker(self) -> None:
        self.broker.kill()

    def bring_broker_back(self) -> None:
        self.broker.start()


class MosquittoHarness:
    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.buses: list[MqttBus] = []
        self.proxies: dict[str, FaultProxy] = {}

    def client(
        self, name: str, *filters: str, will: Will | None = None, length: int = 1000, clean_session: bool = False
    ) -> Client:
        proxy = self.proxies.setdefault(name, FaultProxy(self.wire.broker.port))
        config = replace(
            self.wire.mqtt_config(name, filters, will, port=proxy.port), clean_session=clean_session, inbox_wait_s=0.1
        )
        inbox: queue.Queue[Event] = queue.Queue(length)
        bus = MqttBus(config, inbox)
        self.buses.append(bus)
        return Client(bus, inbox, lambda: None)

    def cut(self, name: str) -> None:
        self.proxies[name].cut()

    def kill_broker(self) -> None:
        self.wire.broker.stop()

    def bring_broker_back(self) -> None:
        self.wire.broker.start()

    def close(self) -> None:
        for bus in self.buses:
            bus.stop()
        for proxy in self.proxies.values():
            proxy.close()


@pytest.fixture(params=["memory", pytest.param("mosquitto", marks=pytest.mark.system)])
def harness(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Harness]:
    if request.param == "memory":
        yield MemoryHarness()
        return
    with running_wire(tmp_path) as wire:
        real = MosquittoHarness(wire)
        try:
            yield real
        finally:
            real.close()


def up(harness: Harness, name: str, *filters: str, will: Will | None = None, length: int = 1000) -> Client:
    """Return a client that is connected."""
    client = harness.client(name, *filters, will=will, length=length)
    client.bus.start()
    client.expect(Connected)
    return client


def test_a_message_reaches_who_subscribed_and_its_token_comes_back(harness: Harness) -> None:
    """The subscriber gets topic and payload; the sender gets `Published` with the token of publish()."""
    server = up(harness, SERVER, "rg/d/+/up/reported")
    device = up(harness, "dev-1")

    token = device.bus.publish("rg/d/dev-1/up/reported", b"hello")

    assert device.expect(Published).token == token
    assert server.expect(Message) == Message("rg/d/dev-1/up/reported", b"hello")
    assert (device.bus.bytes_sent, server.bus.bytes_received) == (5, 5)


def test_the_token_of_a_message_without_guarantee_comes_back_when_it_has_left(harness: Harness) -> None:
    """QoS 0 has `Published` too."""
    device = up(harness, "dev-1")

    token = device.bus.publish("rg/d/dev-1/up/get", b"x", qos=0)

    assert device.expect(Published).token == token


def test_the_largest_message_passes_and_a_larger_one_is_refused(harness: Harness) -> None:
    """64 KiB and a chunk's header travel whole; one byte more is TooLarge."""
    server = up(harness, SERVER)
    device = up(harness, "dev-1", "rg/d/dev-1/dn/chunk/+")
    payload = bytes(range(256)) * 256 + b"h" * 16

    server.bus.publish("rg/d/dev-1/dn/chunk/7", payload, qos=0)

    assert len(payload) == MAX_PAYLOAD_BYTES
    assert device.expect(Message).payload == payload
    with pytest.raises(TooLarge, match="65553 bytes"):
        server.bus.publish("rg/d/dev-1/dn/chunk/7", payload + b"!")


def test_messages_keep_their_order(harness: Harness) -> None:
    """A hundred messages of either quality arrive in the order of publish()."""
    server = up(harness, SERVER)
    device = up(harness, "dev-1", "rg/d/dev-1/dn/response")

    for number in range(100):
        server.bus.publish("rg/d/dev-1/dn/response", str(number).encode())

    assert [int(device.expect(Message).payload) for _ in range(100)] == list(range(100))


def test_a_retained_message_waits_for_who_comes_later(harness: Harness) -> None:
    """It is marked as retained, comes after Connected, and the latest one wins; an empty one takes it away."""
    server = up(harness, SERVER)
    for payload in (b"old", b"new"):
        server.bus.publish("rg/d/dev-1/dn/desired", payload, retain=True)
        server.expect(Published)
    server.bus.publish("rg/d/dev-2/dn/desired", b"gone", retain=True)
    server.bus.publish("rg/d/dev-2/dn/desired", b"", retain=True)
    server.until(Published)
    server.until(Published)

    device = up(harness, "dev-1", "rg/d/dev-1/dn/desired")
    other = up(harness, "dev-2", "rg/d/dev-2/dn/desired")
    server.bus.publish("rg/d/dev-2/dn/desired", b"fence")

    assert device.expect(Message) == Message("rg/d/dev-1/dn/desired", b"new", retained=True)
    assert other.expect(Message) == Message("rg/d/dev-2/dn/desired", b"fence")


def test_a_broken_connection_says_the_will_and_comes_back(harness: Harness) -> None:
    """After a cut the others hear the will; the bus reconnects by itself and its subscriptions work."""
    server = up(harness, SERVER, "rg/d/+/up/state")
    device = up(harness, "dev-1", "rg/d/dev-1/dn/response", will=Will("rg/d/dev-1/up/state", b"down"))

    harness.cut("dev-1")

    assert server.expect(Message) == Message("rg/d/dev-1/up/state", b"down")
    device.expect(Disconnected)
    device.expect(Connected)
    server.bus.publish("rg/d/dev-1/dn/response", b"again")
    assert device.expect(Message).payload == b"again"


def test_stop_says_the_will_last_and_may_be_called_twice(harness: Harness) -> None:
    """What was published before stop() arrives before the will, and the will arrives once."""
    server = up(harness, SERVER, "rg/d/+/up/#")
    device = up(harness, "dev-1", will=Will("rg/d/dev-1/up/state", b"down"))
    device.bus.publish("rg/d/dev-1/up/reported", b"last words")

    device.bus.stop()
    device.bus.stop()
    server.bus.publish("rg/d/dev-1/up/fence", b"fence")

    assert [server.until(Message).payload for _ in range(3)] == [b"last words", b"down", b"fence"]
    device.until(Disconnected)
    with pytest.raises(Retryable):
        device.bus.publish("rg/d/dev-1/up/reported", b"too late")


def test_commands_wait_for_a_client_that_is_away(harness: Harness) -> None:
    """With a persistent session QoS 1 messages sent meanwhile come after Connected; QoS 0 ones are lost."""
    server = up(harness, SERVER)
    device = up(harness, "dev-1", "rg/d/dev-1/dn/#")
    device.bus.stop()
    for payload, qos in ((b"a", 1), (b"lost", 0), (b"b", 1)):
        server.bus.publish("rg/d/dev-1/dn/response", payload, qos=1 if qos else 0)
        server.expect(Published)

    again = harness.client("dev-1", "rg/d/dev-1/dn/#")
    again.bus.start()

    assert again.expect(Connected).session_present
    assert [again.expect(Message).payload for _ in range(2)] == [b"a", b"b"]


def test_a_clean_session_starts_without_a_past(harness: Harness) -> None:
    """Nothing sent meanwhile comes to a client that wants no session."""
    server = up(harness, SERVER)
    for _ in range(2):
        device = harness.client("dev-1", "rg/d/dev-1/dn/#", clean_session=True)
        device.bus.start()
        assert not device.expect(Connected).session_present
        device.bus.stop()
        server.bus.publish("rg/d/dev-1/dn/response", b"missed")
        server.expect(Published)
        assert isinstance(device.next(), Disconnected)


def test_without_a_connection_publish_says_to_try_later(harness: Harness) -> None:
    """Before Connected and while the broker is gone publish() is Retryable; wildcards are a bug of the caller."""
    device = harness.client("dev-1")
    with pytest.raises(Retryable, match="not connected"):
        device.bus.publish("rg/d/dev-1/up/reported", b"x")
    device.bus.start()
    device.expect(Connected)

    harness.kill_broker()
    device.expect(Disconnected)

    with pytest.raises(Retryable, match="not connected"):
        device.bus.publish("rg/d/dev-1/up/reported", b"x")
    with pytest.raises(Misuse, match="wildcard"):
        device.bus.publish("rg/d/+/up/reported", b"x")


def test_a_restarted_broker_is_found_again(harness: Harness) -> None:
    """Subscriptions are made again on the new broker before Connected is told."""
    server = up(harness, SERVER, "rg/d/+/up/reported")
    device = up(harness, "dev-1")

    harness.kill_broker()
    server.expect(Disconnected)
    device.expect(Disconnected)
    harness.bring_broker_back()
    server.until(Connected)
    device.until(Connected)
    device.bus.publish("rg/d/dev-1/up/reported", b"back")

    assert server.expect(Message).payload == b"back"


def test_a_device_cannot_speak_or_hear_for_another(harness: Harness) -> None:
    """What is outside of the device's own topics is swallowed on the way in and out."""
    server = up(harness, SERVER, "rg/d/+/up/reported")
    thief = up(harness, "dev-2", "rg/d/#", "rg/d/dev-1/dn/response", "rg/d/dev-2/dn/response")

    thief.bus.publish("rg/d/dev-1/up/reported", b"forged")
    thief.bus.publish("rg/d/dev-1/dn/response", b"forged")
    thief.bus.publish("rg/d/dev-2/up/reported", b"own")
    server.bus.publish("rg/d/dev-1/dn/response", b"secret")
    server.bus.publish("rg/d/dev-2/dn/response", b"mine")

    assert server.until(Message) == Message("rg/d/dev-2/up/reported", b"own")
    assert thief.until(Message) == Message("rg/d/dev-2/dn/response", b"mine")


def test_everybody_hears_what_is_broadcast(harness: Harness) -> None:
    """Chunks for a whole wave travel once, on rg/b/."""
    server = up(harness, SERVER)
    devices = [up(harness, name, "rg/b/#") for name in ("dev-1", "dev-2")]

    server.bus.publish("rg/b/abc/0", b"chunk")

    assert [device.expect(Message).payload for device in devices] == [b"chunk", b"chunk"]


def test_a_full_inbox_drops_chunks_and_counts_them(harness: Harness) -> None:
    """QoS 0 messages that find no room are lost and counted; nothing blocks, and later ones arrive."""
    server = up(harness, SERVER)
    device = up(harness, "dev-1", "rg/d/dev-1/dn/chunk/+", length=10)

    for number in range(50):
        server.bus.publish("rg/d/dev-1/dn/chunk/1", str(number).encode(), qos=0)
    deadline = time.monotonic() + DEADLINE_S
    while device.bus.dropped < 40:
        assert time.monotonic() < deadline, device.bus.dropped
        time.sleep(0.005)

    assert [int(device.expect(Message).payload) for _ in range(10)] == list(range(10))
    server.bus.publish("rg/d/dev-1/dn/chunk/1", b"next", qos=0)
    assert device.expect(Message).payload == b"next"


def test_a_full_inbox_loses_no_command(harness: Harness) -> None:
    """QoS 1 messages that find no room come again after a new connection; each one arrives at least once."""
    server = up(harness, SERVER)
    device = up(harness, "dev-1", "rg/d/dev-1/dn/response", length=5)

    for number in range(60):
        server.bus.publish("rg/d/dev-1/dn/response", str(number).encode())
    for _ in range(60):
        server.until(Published)
    seen: set[int] = set()
    while seen != set(range(60)):
        seen.add(int(device.until(Message).payload))

    assert device.bus.dropped == 0
