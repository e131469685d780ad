"""When telemetry is sent: windows once a period, a race at once."""

from __future__ import annotations

from pathlib import Path

from regatta_agent.courier import Courier
from regatta_agent.outbox import Outbox
from regatta_protocol.ids import DeviceId, ModelName
from regatta_protocol.measurement import BoardFacts, RaceReport
from regatta_protocol.messages import RaceItem, ServingWindow


class _Broker:
    """Takes whatever is published, and counts."""

    def __init__(self) -> None:
        self.published: list[str] = []

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> int:
        self.published.append(topic)
        return len(self.published)

    def start(self) -> None: ...

    def stop(self) -> None: ...


def test_a_race_does_not_wait_for_the_period(tmp_path: Path) -> None:
    """The next device of its kind may be about to ask the fleet for its result."""
    broker = _Broker()
    outbox = Outbox(tmp_path / "outbox.sqlite", DeviceId("d"), 1_000_000)
    outbox.open()
    courier = Courier(outbox, broker, DeviceId("d"), 1000.0)
    window = ServingWindow(model=ModelName("m"), version=1, placement="p", start=0, stop=1, requests=1, errors=0)
    report = RaceReport(model="m", version=1, board=BoardFacts(), candidates=(), reason="none", duration_s=1.0)
    courier.keep(window)
    courier.flush(1.0, online=True)
    assert courier.acknowledged(1)

    courier.keep(window)
    courier.flush(2.0, online=True)
    waited = len(broker.published)
    courier.keep(RaceItem(at=0.0, report=report))
    courier.flush(3.0, online=True)

    assert (waited, len(broker.published)) == (1, 2)
    outbox.close()


def test_what_the_broker_has_is_not_sent_again_while_the_disk_takes_nothing(tmp_path: Path) -> None:
    """A full or read-only disk costs no traffic: the batch is forgotten once the disk takes that."""
    broker = _Broker()
    outbox = Outbox(tmp_path / "outbox.sqlite", DeviceId("d"), 1_000_000)
    outbox.open()
    courier = Courier(outbox, broker, DeviceId("d"), 1.0)
    window = ServingWindow(model=ModelName("m"), version=1, placement="p", start=0, stop=1, requests=1, errors=0)
    courier.keep(window)
    courier.flush(0.0, online=True)
    outbox._open.execute("PRAGMA query_only = ON")
    assert courier.acknowledged(1)
    for second in range(1, 20):
        courier.keep(window)
        courier.flush(float(second), online=True)
    meanwhile = (len(broker.published), outbox.waiting())
    outbox._open.execute("PRAGMA query_only = OFF")
    courier.flush(30.0, online=True)
    courier.keep(window)
    courier.flush(32.0, online=True)

    assert meanwhile == (1, 1)
    assert (len(broker.published), outbox.unsent()) == (2, 0)
    outbox.close()
