"""A broker in memory, for scenario tests: `MemoryBroker` and `MemoryBus`, a fake that passes the real one's contract.

It has what the fleet relies on: retained messages, wills, persistent sessions, and the access rules by certificate
(wire.md). There is no thread and no clock: a message is delivered while `publish` runs, or, with `automatic=False` or
a delay, when the test calls `deliver(now_s)`. The same seed gives the same faults.

tests/contract/test_bus.py runs the same suite over this and over `MqttBus` with a real Mosquitto.
"""

from __future__ import annotations

import itertools
import queue
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from regatta_protocol.bus import Connected, Disconnected, Event, Inbox, Message, Published, Will
from regatta_protocol.ids import SERVER_IDENTITY
from regatta_protocol.outgoing import Outgoing

__all__ = ["Faults", "MemoryBroker", "MemoryBus", "fleet_rules", "matches"]

_MAX_QUEUED = 1000  # as the fleet's Mosquitto is set; what is over is dropped silently


@dataclass(frozen=True)
class Faults:
    """How often a delivery goes wrong; each a chance in [0, 1].

    As on a real broker, only QoS 0 messages get lost or damaged. Any may come twice, late, or behind a later one.
    """

    drop: float = 0.0
    truncate: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    max_delay_s: float = 0.0  # each delivery takes a uniform time up to this


def matches(pattern: str, topic: str) -> bool:
    """Say whether a topic filter (MQTT 3.1.1, section 4.7) covers the topic."""
    wanted, levels = pattern.split("/"), topic.split("/")
    if topic.startswith("$") and wanted[0] in ("+", "#"):
        return False
    for index, part in enumerate(wanted):
        if part == "#":
            return True
        if index >= len(levels) or part not in ("+", levels[index]):
            return False
    return len(wanted) == len(levels)


def fleet_rules(client_id: str, action: Literal["read", "write"], topic: str) -> bool:
    """Say whether the fleet's broker lets this client read or write the topic."""
    if client_id == SERVER_IDENTITY:
        return True
    allowed = {"read": (f"rg/d/{client_id}/dn/#", "rg/b/#"), "write": (f"rg/d/{client_id}/up/#",)}[action]
    return any(matches(pattern, topic) for pattern in allowed)


@dataclass
class _Session:
    """What the broker keeps of a client."""

    filters: tuple[str, ...] = ()
    bus: MemoryBus | None = None
    queued: list[Message] = field(default_factory=list)  # QoS 1, for when it is back


@dataclass(order=True)
class _Delivery:
    due_s: float
    order: float
    client_id: str = field(compare=False)
    message: Message = field(compare=False)
    qos: Literal[0, 1] = field(compare=False)


class MemoryBroker:
    """The broker. `faults` and `up` may be changed at any time; `start` and `kill` do the latter."""

    def __init__(
        self,
        faults: Faults | None = None,
        chance: random.Random | None = None,
        *,
        automatic: bool = True,
        rules: Callable[[str, Literal["read", "write"], str], bool] = fleet_rules,
    ) -> None:
        self.faults = faults or Faults()
        self.up = True
        self.now_s = 0.0
        self._chance = chance or random.Random(0)  # noqa: S311 - faults, not secrets
        self._automatic = automatic
        self._rules = rules
        self._retained: dict[str, bytes] = {}
        self._sessions: dict[str, _Session] = {}
        self._buses: list[MemoryBus] = []  # started, connected or not
        self._pending: list[_Delivery] = []
        self._order = itertools.count()
        self._newest = -1.0

    def start(self) -> None:
        """Be there (again): every bus that was started connects."""
        self.up = True
        for bus in list(self._buses):
            bus.connect()

    def kill(self) -> None:
        """Vanish as with SIGKILL, before anything was saved: sessions, queues and wills are gone, retained is kept."""
        self.up = False
        self._pending.clear()
        self._sessions.clear()
        for bus in list(self._buses):
            bus.lose("the broker is gone")

    def cut(self, client_id: str, *, reconnect: bool = True) -> None:
        """Break the client's connection without a goodbye: its will is said, and it connects again unless told not."""
        session = self._sessions.get(client_id)
        if session is None or session.bus is None:
            return
        bus = session.bus
        self.detach(bus, say_will=True)
        bus.lose("the connection was cut")
        if reconnect:
            bus.connect()

    def deliver(self, now_s: float | None = None) -> int:
        """Deliver all that is due at `now_s` (default: everything there is); return how many messages went out."""
        if now_s is not None:
            self.now_s = max(self.now_s, now_s)
        due = [d for d in sorted(self._pending) if now_s is None or d.due_s <= self.now_s]
        return self._hand_out(due)

    def attach(self, bus: MemoryBus) -> None:
        """Take a connection; what the client missed comes after `Connected`."""
        if bus not in self._buses:
            self._buses.append(bus)
        if not self.up:
            return
        session = self._sessions.get(bus.client_id)
        if session is not None and session.bus is not None and session.bus is not bus:
            evicted = session.bus
            self.detach(evicted, say_will=True)
            evicted.lose("another connection took its place")
        present = session is not None and not bus.clean_session
        if session is None or not present:
            session = self._sessions[bus.client_id] = _Session()
        session.bus, session.filters = bus, bus.filters
        bus.welcome(present)
        missed, session.queued = session.queued, []
        for message in missed:
            self._enqueue(bus.client_id, message, 1)
        for topic, payload in self._retained.items():
            if self._wants(bus.client_id, session, topic):
                self._enqueue(bus.client_id, Message(topic, payload, retained=True), 1)
        self._settle()

    def detach(self, bus: MemoryBus, *, say_will: bool) -> None:
        """End a connection; a session that shall persist stays, and what was on its way to it waits there."""
        session = self._sessions.get(bus.client_id)
        if session is None or session.bus is not bus:
            return
        session.bus = None
        for delivery in [d for d in sorted(self._pending) if d.client_id == bus.client_id]:
            self._pending.remove(delivery)
            if delivery.qos == 1:
                session.queued.append(delivery.message)
        if bus.clean_session:
            del self._sessions[bus.client_id]
        if say_will and bus.will is not None:
            self.route(bus.client_id, bus.will.topic, bus.will.payload, 1, bus.will.retain)

    def leave(self, bus: MemoryBus) -> None:
        """Forget a bus that was stopped."""
        if bus in self._buses:
            self._buses.remove(bus)

    def route(self, sender: str, topic: str, payload: bytes, qos: Literal[0, 1], retain: bool) -> None:
        """Take a message and pass it to all who want it. What the sender may not say is swallowed, as by Mosquitto."""
        if not self._rules(sender, "write", topic):
            return
        if retain:
            self._retained.pop(topic, None)
            if payload:
                self._retained[topic] = payload
        for client_id, session in list(self._sessions.items()):
            if self._wants(client_id, session, topic):
                self._enqueue(client_id, Message(topic, payload), qos)
        self._settle()

    def _wants(self, client_id: str, session: _Session, topic: str) -> bool:
        return any(matches(text, topic) for text in session.filters) and self._rules(client_id, "read", topic)

    def _enqueue(self, client_id: str, message: Message, qos: Literal[0, 1]) -> None:
        session = self._sessions[client_id]
        if session.bus is None:
            if qos == 1 and len(session.queued) < _MAX_QUEUED:
                session.queued.append(message)
            return
        faults, chance = self.faults, self._chance
        if qos == 0 and chance.random() < faults.drop:
            return
        if qos == 0 and chance.random() < faults.truncate:
            message = Message(message.topic, message.payload[: chance.randrange(len(message.payload) + 1)])
        for _ in range(2 if chance.random() < faults.duplicate else 1):
            order = float(next(self._order))
            self._newest = order
            if chance.random() < faults.reorder:
                order += 1.5  # behind the next one
            due_s = self.now_s + chance.uniform(0.0, faults.max_delay_s)
            self._pending.append(_Delivery(due_s, order, client_id, message, qos))

    def _settle(self) -> None:
        """Deliver at once what needs no waiting. A reordered message waits for one to come before it, or `deliver`."""
        if self._automatic:
            self._hand_out([d for d in sorted(self._pending) if d.due_s <= self.now_s and d.order <= self._newest])

    def _hand_out(self, deliveries: list[_Delivery]) -> int:
        count = 0
        for delivery in deliveries:
            if delivery not in self._pending:
                continue
            session = self._sessions.get(delivery.client_id)
            if session is None or session.bus is None:
                continue
            if session.bus.take_in(delivery.message, delivery.qos):
                self._pending.remove(delivery)
                count += 1
            else:  # its inbox is full: it gives the connection up, and the broker keeps what is not acknowledged
                bus = session.bus
                self.detach(bus, say_will=True)
                bus.lose("the inbox is full")
        return count


class MemoryBus:
    """A `Bus` to a MemoryBroker. `connect` is what the real one does by itself after a while."""

    def __init__(
        self,
        broker: MemoryBroker,
        client_id: str,
        inbox: Inbox,
        filters: tuple[str, ...] = (),
        will: Will | None = None,
        *,
        clean_session: bool = False,
        max_outgoing: int = 1000,
        max_outgoing_bytes: int = 16 * 1024 * 1024,
    ) -> None:
        self.client_id = client_id
        self.filters = filters
        self.will = will
        self.clean_session = clean_session
        self.bytes_received = 0
        self.bytes_sent = 0
        self.dropped = 0
        self._broker = broker
        self._inbox = inbox
        self._outgoing = Outgoing(max_outgoing, max_outgoing_bytes)
        self._running = False
        self._connected = False
        self._owed: deque[Event] = deque()  # Connected and Disconnected that found no room

    def start(self) -> None:
        """Connect, now or when the broker is there."""
        self._running = True
        if self._broker.up:
            self.connect()
        else:
            self._broker.attach(self)
            self._put(Disconnected("the broker is gone"))

    def connect(self) -> None:
        """Connect (again) if started and not connected; also after the inbox had been full."""
        if self._running and not self._connected and self._pay_owed():
            self._broker.attach(self)

    def publish(self, topic: str, payload: bytes, *, qos: Literal[0, 1] = 1, retain: bool = False) -> int:
        """Hand a message over; returns a token that comes back in `Published`.

        Raises:
            Retryable: when not connected, or too many messages are on their way.
            TooLarge: when the payload is over the limit of codec.py.
            Misuse: when the topic is empty or has a wildcard.
        """
        token = self._outgoing.add(topic, payload, qos, retain)
        self._send_waiting()
        return token

    def stop(self) -> None:
        """Disconnect cleanly, with the will said as a last message. May be called twice."""
        if not self._running:
            return
        self._running = False
        self._outgoing.close()
        if self._connected:
            self._connected = False
            self._broker.detach(self, say_will=True)
        self._broker.leave(self)
        self._put(Disconnected("stopped"))

    def welcome(self, session_present: bool) -> None:
        """Hear from the broker that the connection stands."""
        self._connected = True
        self._outgoing.open()
        self._owed.append(Connected(session_present))
        self._pay_owed()
        self._send_waiting()

    def lose(self, reason: str) -> None:
        """Hear from the broker that the connection is gone."""
        if self._connected:
            self._connected = False
            self._outgoing.close()
            self._owed.append(Disconnected(reason))
            self._pay_owed()

    def take_in(self, message: Message, qos: Literal[0, 1]) -> bool:
        """Hear a message; False when it has to be kept for later."""
        taken = self._put(message)
        if taken or qos == 0:
            self.bytes_received += len(message.payload)
        if not taken and qos == 0:
            self.dropped += 1
        return taken or qos == 0

    def _send_waiting(self) -> None:
        while self._connected and (message := self._outgoing.take()) is not None:
            self._broker.route(self.client_id, message.topic, message.payload, message.qos, message.retain)
            if self._put(Published(message.token)):
                self._outgoing.done(message.token)
                self.bytes_sent += len(message.payload)
            else:  # a QoS 1 message is said again after the next Connected
                self._broker.detach(self, say_will=True)
                self.lose("the inbox is full")

    def _pay_owed(self) -> bool:
        """Put what found no room earlier; say whether nothing is left of it."""
        while self._owed and self._try_put(self._owed[0]):
            self._owed.popleft()
        return not self._owed

    def _put(self, event: Event) -> bool:
        return self._pay_owed() and self._try_put(event)

    def _try_put(self, event: Event) -> bool:
        try:
            self._inbox.put(event, block=False)
        except queue.Full:
            return False
        return True
