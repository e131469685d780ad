"""Bytes on a metered link, counted by the kernel over the real broker while heartbeats come 1,800 times as fast."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from enrolled import enrolled
from mosquitto import connected, require_mosquitto, running_wire
from regatta_agent.traffic import read_traffic
from regatta_protocol import topics
from regatta_protocol.bus import Message
from regatta_protocol.ids import DeviceId
from regatta_protocol.traffic import Cause

pytestmark = pytest.mark.system

DEVICE = DeviceId("porch")
_BUDGET_BYTES = 500_000  # a month, headers included
_BEATS_A_MONTH = 30 * 48
_BEATS = 5


def test_a_month_at_rest_on_a_metered_link_is_within_half_a_megabyte(tmp_path: Path) -> None:
    """A heartbeat each half hour, a report a day and a reconnection a week; nothing else is said, not even a ping."""
    require_mosquitto()
    (tmp_path / "wire").mkdir()
    (tmp_path / "agent.toml").write_text('link = "metered"\nheartbeat_period_s = 1.0\nkeepalive_s = 5\n')
    with running_wire(tmp_path / "wire") as wire:
        state = enrolled(wire, tmp_path, DEVICE)
        server = wire.mqtt_config("regatta-server", filters=topics.SERVER_FILTERS)
        folders = ["--state-dir", str(state), "--run-dir", str(tmp_path / "run")]
        argv = [sys.executable, "-m", "regatta_agent", "run", "--config", str(tmp_path / "agent.toml"), *folders]
        with connected(server) as (_, inbox):
            agent = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
            presences, deadline = 0, time.monotonic() + 60
            try:
                while presences < _BEATS + 1 and time.monotonic() < deadline:
                    event = inbox.get(timeout=60)
                    if isinstance(event, Message) and event.topic == topics.up(DEVICE, topics.Up.STATE):
                        presences += not event.retained
            finally:
                agent.terminate()
                assert agent.wait(20) == 0
        kept = read_traffic(state, tmp_path / "none")
    assert kept is not None
    spent = kept.amounts()
    beat = spent[Cause.PRESENCE].total / (presences + 1)  # all are as long as a heartbeat or longer; the last says down
    start = spent[Cause.CONNECTION].total + spent[Cause.REPORTS].total + beat
    month = _BEATS_A_MONTH * beat + 30 * spent[Cause.REPORTS].total + 4 * start

    assert presences == _BEATS + 1
    assert Cause.KEEPALIVE not in spent and Cause.TELEMETRY not in spent
    assert beat > 100, json.dumps(kept.causes)
    assert month <= _BUDGET_BYTES, json.dumps(kept.causes)
