"""A device rig over the real broker: its bus goes through a proxy that breaks things, and so may the fleet's.

The loop, the disk and MQTT with TLS are real; children are scripted and trust is one word, for other tests are about
those (test_survival.py starts every program as a user does). Real time goes by, and `let_pass` adds more of it at once;
what a busy machine kept this process from running does not pass for the device, which would take it for lost chunks.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

from device_rig import Fleet, Rig
from fault_proxy import FaultProxy
from mosquitto import Wire
from regatta_agent.events import Event
from regatta_protocol import topics
from regatta_protocol.bus import Bus, Connected, Will
from regatta_protocol.errors import Retryable
from regatta_protocol.ids import DeviceId
from regatta_protocol.messages import SignedAssignment
from regatta_protocol.mqtt import MqttBus
from regatta_protocol.testing import MemoryBroker
from regatta_provisioning.identity import Identity

__all__ = ["LiveFleet", "LiveRig"]

_TURN_S = 0.01
_LONGEST_TURN_S = 0.1  # of the device's clock


class LiveFleet(Fleet):
    """Says its wish again after each connection, as the server does; what cannot be sent is asked for again."""

    def __init__(self, wire: Wire, device: DeviceId) -> None:
        super().__init__(MemoryBroker(), device)
        self.wire = wire
        self.wish: SignedAssignment | None = None

    def start(self) -> None:
        config = self.wire.mqtt_config("regatta-server", topics.SERVER_FILTERS)
        self.bus = MqttBus(config, self.inbox)
        self.bus.start()
        while not isinstance(self.inbox.get(timeout=60), Connected):
            continue

    def publish(self, signed: SignedAssignment) -> None:
        self.wish = signed
        super().publish(signed)

    def say(self, topic: str, payload: bytes, *, qos: Literal[0, 1] = 1, retain: bool = False) -> None:
        with suppress(Retryable):
            super().say(topic, payload, qos=qos, retain=retain)

    def answer_all(self) -> bool:
        events = [self.inbox.get_nowait() for _ in range(self.inbox.qsize())]
        if self.wish is not None and any(isinstance(event, Connected) for event in events):
            self.publish(self.wish)
        for event in events:
            self.inbox.put(event)
        return super().answer_all()


class LiveRig(Rig):
    """One device; `stop` ends its bus and the fleet's."""

    def __init__(self, folder: Path, wire: Wire, proxy: FaultProxy, device: DeviceId, **settings: object) -> None:
        self.wire = wire
        self.proxy = proxy
        super().__init__(folder, device=device, **settings)  # type: ignore[arg-type]
        self._beat_s = time.monotonic()

    def make_fleet(self, device: DeviceId) -> Fleet:
        return LiveFleet(self.wire, device)

    def live(self, until: Callable[[], bool], limit_s: float = 90.0) -> bool:
        """Let real time go by until `until` is true; return whether it was within the limit."""
        begun_s = time.monotonic()
        while time.monotonic() - begun_s < limit_s:
            self.loop.turn(_TURN_S)
            self.fleet.answer_all()
            now_s = time.monotonic()
            self.clock.pass_by(min(now_s - self._beat_s, _LONGEST_TURN_S))
            self._beat_s = now_s
            if until():
                return True
        return False

    def let_pass(self, seconds: float, step_s: float = 10.0) -> None:
        """Let time go by on the device's clock, without waiting for it."""
        for _ in range(int(seconds / step_s)):
            self.clock.pass_by(step_s)
            self.loop.turn(0.0)
            self.fleet.answer_all()

    def stop(self) -> None:
        self.bus.stop()
        if self.fleet.bus is not None:
            self.fleet.bus.stop()
        self.outbox.close()

    def _bus(self, inbox: queue.Queue[Event], identity: Identity, will: Will) -> Bus:
        filters = topics.device_filters(identity.device)
        config = self.wire.mqtt_config(identity.device, filters, will, port=self.proxy.port)
        # What takes a minute in the field takes seconds here.
        self.bus = MqttBus(replace(config, keepalive_s=3, connect_timeout_s=5.0), inbox)
        return self.bus
