"""When the fleet hears of a device: at once when something changed, else a few bytes per heartbeat."""

from __future__ import annotations

from regatta_agent.core.facts import Facts
from regatta_agent.core.installs import AgentRecord
from regatta_agent.reporter import Reporter
from regatta_protocol.codec import decode
from regatta_protocol.ids import DeviceId
from regatta_protocol.measurement import BoardFacts
from regatta_protocol.messages import Presence
from regatta_protocol.topics import Up, parse_up

_FACTS = Facts(now_s=0.0, online=True, free_bytes=0, stored={}, jobs={}, workers={}, links={})


class _Broker:
    def __init__(self) -> None:
        self.published: list[tuple[Up, bytes, bool]] = []

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> int:
        self.published.append((parse_up(topic).kind, payload, retain))
        return len(self.published)

    def start(self) -> None: ...

    def stop(self) -> None: ...


def test_at_rest_a_heartbeat_is_a_few_bytes_and_a_report_is_due_once_a_day() -> None:
    """The broker keeps what was retained at connecting; a heartbeat says the same, so that the fleet has seen it."""
    broker = _Broker()
    reporter = Reporter(broker, DeviceId("pi"), BoardFacts(model="a board"), "b" * 16, "0.1.0", 1800.0)
    record = AgentRecord()
    reporter.connected()
    for minute in range(0, 25 * 60, 10):
        now_s = minute * 60.0
        if reporter.due(record, _FACTS, now_s):
            reporter.send(record, _FACTS, now_s)
        else:
            reporter.beat(now_s)
    reports = [payload for kind, payload, _ in broker.published if kind is Up.REPORTED]
    beats = [payload for kind, payload, retained in broker.published if kind is Up.STATE and not retained]

    assert len(reports) == 2
    assert len(beats) == 2 * 25 - 2
    assert {len(beat) for beat in beats} <= set(range(70))
    assert decode(Presence, beats[0]) == decode(Presence, broker.published[0][1])
