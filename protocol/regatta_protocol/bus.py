"""The seam to a broker: what agent and fleet need of MQTT, and the events that come back.

`regatta_protocol.mqtt.MqttBus` is the real one, `regatta_protocol.testing.MemoryBus` the fake; both pass
tests/contract/test_bus.py. Callbacks of a client library only put events on the bounded queue that the owner of
state gave; nothing else happens on their thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

__all__ = ["Bus", "Connected", "Disconnected", "Event", "Message", "Published", "Will"]


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


class Bus(Protocol):
    """A connection to the broker that keeps itself up."""

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
