"""When telemetry is sent: windows once a period, a race at once."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest

from regatta_agent.telemetry.courier import Courier
from regatta_agent.telemetry.outbox import Outbox
from regatta_protocol.errors import StorageFull
from regatta_protocol.ids import DeviceId, ModelName
from regatta_protocol.measurement import BoardFacts, RaceReport
from regatta_protocol.messages import RaceItem
from regatta_protocol.values import ServingWindow


class _Broker:
    """Takes whatever is published, and counts."""

    def __init__(self) -> None:
        self.published: list[str] = []

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> int:
        self.published.append(topic)
        return len(self.published)

    def start(self) -> None: ...

    def stop(self) -> None: ...


def courier_of(outbox: Outbox, broker: _Broker, period_s: float) -> Courier:
    return Courier(outbox, broker, DeviceId("d"), period_s, free_bytes=lambda: 0, full_wait_s=3600.0)


def test_a_race_does_not_wait_for_the_period(tmp_path: Path) -> None:
    """The next device of its kind may be about to ask the fleet for its result."""
    broker = _Broker()
    outbox = Outbox(tmp_path / "outbox.sqlite", DeviceId("d"), 1_000_000)
    outbox.open()
    courier = courier_of(outbox, broker, 1000.0)
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


def test_a_batch_that_cannot_be_forgotten_is_not_sent_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker has it, and the disk is full: it waits to be deleted, and goes out a second time to nobody."""
    broker = _Broker()
    outbox = Outbox(tmp_path / "outbox.sqlite", DeviceId("d"), 1_000_000)
    outbox.open()
    courier = courier_of(outbox, broker, 1.0)
    window = ServingWindow(model=ModelName("m"), version=1, placement="p", start=0, stop=1, requests=1, errors=0)
    courier.keep(window)
    courier.flush(1.0, online=True)
    acknowledge = Outbox.acknowledge
    monkeypatch.setattr(Outbox, "acknowledge", mock.Mock(side_effect=StorageFull("no space left")))
    assert courier.acknowledged(1)
    for now_s in range(2, 300):
        courier.flush(float(now_s), online=True)

    assert len(broker.published) == 1
    monkeypatch.setattr(Outbox, "acknowledge", acknowledge)
    courier.flush(4000.0, online=True)
    assert (len(broker.published), outbox.waiting()) == (1, 0)
    outbox.close()
