"""Bytes on a metered link: what a month at rest comes to, counted by the kernel over the real broker."""

from __future__ import annotations

import queue
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from enrolled import enrolled
from mosquitto import Wire, connected, expect, require_mosquitto, running_wire
from polling import wait_until
from regatta_agent.core.facts import Facts
from regatta_agent.core.installs import AgentRecord
from regatta_agent.disk.traffic import read_traffic
from regatta_agent.reporter import Reporter
from regatta_protocol import topics
from regatta_protocol.bus import Connected, Event, Message, Published
from regatta_protocol.ids import DeviceId
from regatta_protocol.measurement import BoardFacts
from regatta_protocol.mqtt import MqttBus
from regatta_protocol.traffic import Amount, Cause, Ledger

pytestmark = pytest.mark.system

DEVICE = DeviceId("porch")
_BUDGET_BYTES = 500_000  # a month, headers included
_BEATS_A_MONTH = 30 * 48
_BEATS = 9
_FACTS = Facts(now_s=0.0, online=True, free_bytes=0, stored={}, jobs={}, workers={}, links={})


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    require_mosquitto()
    (tmp_path / "wire").mkdir()
    with running_wire(tmp_path / "wire") as running:
        yield running


def test_a_month_at_rest_on_a_metered_link_is_within_half_a_megabyte(wire: Wire) -> None:
    """A heartbeat each half hour, a report a day and a reconnection a week.

    The median of several heartbeats counts: on a busy machine an acknowledgement may travel in two segments.
    """
    inbox: queue.Queue[Event] = queue.Queue(1000)
    ledger = Ledger()
    config = replace(wire.mqtt_config(DEVICE, filters=topics.device_filters(DEVICE)), keepalive_s=2400)
    bus = MqttBus(config, inbox, ledger=ledger)
    reporter = Reporter(bus, DEVICE, BoardFacts(model="Raspberry Pi 5 Model B Rev 1.0"), "0" * 16, "0.1.0", 1.0)

    def cost(cause: Cause, act: Callable[[], None]) -> int:
        before = ledger.totals().get(cause, Amount())
        act()
        expect(inbox, Published)
        wait_until(lambda: _grown(ledger, cause, before), 10, f"{cause} is counted")
        return ledger.totals()[cause].total - before.total

    bus.start()
    expect(inbox, Connected)
    connection = ledger.totals()[Cause.CONNECTION].total + cost(Cause.PRESENCE, reporter.connected)
    report = cost(Cause.REPORTS, lambda: reporter.send(AgentRecord(), _FACTS, 0.0))
    beats = []
    for number in range(1, _BEATS + 1):
        beats.append(cost(Cause.PRESENCE, lambda at_s=10.0 * number: reporter.beat(at_s)))  # type: ignore[misc]
    bus.stop()
    month = _BEATS_A_MONTH * statistics.median(beats) + 30 * report + 4 * (connection + report)

    assert min(beats) > 200
    assert month <= _BUDGET_BYTES, (beats, report, connection)


def _grown(ledger: Ledger, cause: Cause, before: Amount) -> bool:
    """Return whether both the message and its acknowledgement are in the sum."""
    now = ledger.totals().get(cause, Amount())
    return now.sent > before.sent and now.received > before.received


def test_between_heartbeats_a_metered_agent_says_nothing(wire: Wire, tmp_path: Path) -> None:
    """No ping and no telemetry; a heartbeat keeps the connection, and comes 1,800 times as fast here."""
    (tmp_path / "agent.toml").write_text('link = "metered"\nheartbeat_period_s = 1.0\nkeepalive_s = 30\n')
    state = enrolled(wire, tmp_path, DEVICE)
    server = wire.mqtt_config("regatta-server", filters=topics.SERVER_FILTERS)
    folders = ["--state-dir", str(state), "--run-dir", str(tmp_path / "run")]
    argv = [sys.executable, "-m", "regatta_agent", "run", "--config", str(tmp_path / "agent.toml"), *folders]
    with connected(server) as (_, inbox):
        agent = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
        presences, stop_s = 0, time.monotonic() + 60
        try:
            while presences < 4 and time.monotonic() < stop_s:
                event = inbox.get(timeout=60)
                presences += isinstance(event, Message) and event.topic == topics.up(DEVICE, topics.Up.STATE)
        finally:
            agent.terminate()
            assert agent.wait(20) == 0
    kept = read_traffic(state, tmp_path / "none")

    assert presences == 4
    assert kept is not None
    assert set(kept.amounts()) == {Cause.CONNECTION, Cause.PRESENCE, Cause.REPORTS}
