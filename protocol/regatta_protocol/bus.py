"""The seam to a broker: what agent and fleet need of MQTT, and the events that come back.

`regatta_protocol.mqtt.MqttBus` is the real one, `regatta_protocol.testing.MemoryBus` the fake; both pass
tests/contract/test_bus.py. Callbacks of a client library only put events on the bounded queue that the owner of
state gave; nothing else happens on their thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

__all__ = ["Bus", "Connected", "Disconnected", "Event", "Inbox", "Message", "Published", "Will"]


@dataclass(frozen=True)
class Will:
    """What the broker says in our name when the connection breaks."""

    topic: str
    payload: bytes
    retain: bool = True


@dataclass(frozen=True)
class Connected:
    session_present: bool


@dataclass(frozen=True)
class Disconnected:
    reason: str


@dataclass(frozen=True)
class Message:
    topic: str
    payload: bytes
    retained: bool = False


@dataclass(frozen=True)
class Published:
    """The broker has acknowledged a QoS 1 message, or a QoS 0 one has left."""

    token: int


Event = Connected | Disconnected | Message | Published


class Inbox(Protocol):
    """Where a bus puts its events: a bounded `queue.Queue`, of these events or of wider ones."""

    def put(self, item: Event, block: bool = ..., timeout: float | None = ...) -> None:
        """Add an event.

        Raises:
            queue.Full: when there is no room (within `timeout` seconds when it blocks).
        """


class Bus(Protocol):
    """A connection to the broker that keeps itself up.

    - `Connected` comes before the messages and acknowledgements of its connection, and with all filters subscribed.
    - Each QoS 1 message that was taken is sent until the broker acknowledges it, also over a new connection (so it
      may arrive twice); a QoS 0 message is lost with its connection, and then its token never comes back.
    - An event is put only while there is room: QoS 0 messages are dropped and counted when there is none.
    """

    def start(self) -> None:
        """Begin connecting, and go on for ever (full jitter between tries). Returns at once."""

    def publish(self, topic: str, payload: bytes, *, qos: Literal[0, 1] = 1, retain: bool = False) -> int:
        """Hand a message over; returns a token that comes back in `Published`.

        Raises:
            Retryable: when not connected, or too many messages are on their way.
            TooLarge: when the payload is over the limit of codec.py.
        """

    def stop(self) -> None:
        """Disconnect cleanly, with the will said as a last message, and end the thread. May be called twice."""
