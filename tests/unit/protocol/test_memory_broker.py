"""The faults of the broker in memory: there when asked for, the same for the same seed, and bounded as documented."""

from __future__ import annotations

import queue
import random

from regatta_protocol.bus import Connected, Disconnected, Event, Message, Will
from regatta_protocol.testing import Faults, MemoryBroker, MemoryBus

CHUNK_TOPIC = "rg/d/dev-1/dn/chunk/1"


def run(faults: Faults, seed: int = 1, qos: int = 0, count: int = 300) -> list[bytes]:
    """Return what a device hears of `count` messages."""
    broker = MemoryBroker(faults, random.Random(seed))
    inbox: queue.Queue[Event] = queue.Queue(10_000)
    server = MemoryBus(broker, "regatta-server", queue.Queue(10_000))
    device = MemoryBus(broker, "dev-1", inbox, ("rg/d/dev-1/dn/#",))
    server.start()
    device.start()
    for number in range(count):
        server.publish(CHUNK_TOPIC, b"%04d" % number, qos=1 if qos else 0)
    broker.deliver()
    events = [inbox.get_nowait() for _ in range(inbox.qsize())]
    return [event.payload for event in events if isinstance(event, Message)]


SENT = [b"%04d" % number for number in range(300)]


def test_without_faults_all_arrives_at_once_and_in_order() -> None:
    """The default is a perfect network."""
    assert run(Faults()) == SENT


def test_drop_loses_what_has_no_guarantee() -> None:
    """About the share asked for, of QoS 0; never a command."""
    assert 180 < len(run(Faults(drop=0.3))) < 240
    assert run(Faults(drop=0.3, truncate=0.3), qos=1) == SENT


def test_duplicate_reorder_and_truncate() -> None:
    """Each does what it is called."""
    doubled = run(Faults(duplicate=0.5), qos=1)
    assert set(doubled) == set(SENT) and 400 < len(doubled) < 500
    mixed = run(Faults(reorder=0.2), qos=1)
    assert sorted(mixed) == SENT and mixed != SENT
    assert max(abs(mixed.index(payload) - place) for place, payload in enumerate(SENT)) < 10
    cut = run(Faults(truncate=0.5))
    assert len(cut) == 300 and 80 < sum(len(payload) < 4 for payload in cut) < 160


def test_the_same_seed_gives_the_same_faults() -> None:
    """A failing scenario can be run again."""
    faults = Faults(drop=0.2, truncate=0.2, duplicate=0.2, reorder=0.2)

    assert run(faults, seed=7) == run(faults, seed=7) != run(faults, seed=8)


def test_a_delay_waits_for_the_tests_clock() -> None:
    """Nothing is delivered before its time, all of it by the longest delay."""
    broker = MemoryBroker(Faults(max_delay_s=10.0), random.Random(3))
    inbox: queue.Queue[Event] = queue.Queue(1000)
    server, device = MemoryBus(broker, "regatta-server", queue.Queue(1000)), MemoryBus(broker, "dev-1", inbox, ("#",))
    server.start()
    device.start()
    for _ in range(100):
        server.publish(CHUNK_TOPIC, b"x")

    early = broker.deliver(5.0)
    late = broker.deliver(10.0)

    assert 30 < early < 70 and early + late == 100


def test_a_killed_broker_keeps_only_what_is_retained() -> None:
    """Sessions and wills are gone, as after kill -9 before the first save; buses come back with the broker."""
    broker = MemoryBroker()
    server_inbox: queue.Queue[Event] = queue.Queue(100)
    inbox: queue.Queue[Event] = queue.Queue(100)
    server = MemoryBus(broker, "regatta-server", server_inbox, ("rg/d/+/up/state",))
    device = MemoryBus(broker, "dev-1", inbox, ("rg/d/dev-1/dn/#",), Will("rg/d/dev-1/up/state", b"down"))
    server.start()
    device.start()
    server.publish("rg/d/dev-1/dn/desired", b"wanted", retain=True)

    broker.kill()
    broker.start()

    events = [inbox.get_nowait() for _ in range(inbox.qsize())]
    assert [type(event) for event in events] == [Connected, Message, Disconnected, Connected, Message]
    assert events[3] == Connected(session_present=False)
    assert events[4] == Message("rg/d/dev-1/dn/desired", b"wanted", retained=True)
    assert not any(isinstance(event, Message) for event in server_inbox.queue)


def test_a_second_connection_of_a_client_takes_the_place_of_the_first() -> None:
    """As with the client id of a certificate: the old one hears that it is out."""
    broker = MemoryBroker()
    first_inbox: queue.Queue[Event] = queue.Queue(10)
    first, second = MemoryBus(broker, "dev-1", first_inbox), MemoryBus(broker, "dev-1", queue.Queue(10))
    first.start()
    second.start()

    assert first_inbox.get_nowait() == Connected(session_present=False)
    assert first_inbox.get_nowait() == Disconnected("another connection took its place")
