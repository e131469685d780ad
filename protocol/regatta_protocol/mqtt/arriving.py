"""Messages on their way in: put into the owner's inbox, and acknowledged only then.

What comes before the owner has been told Connected is held. A message that cannot be taken in is left to the broker,
which keeps it in the session and sends it again later; so nothing behind it is taken in either, and the connection is
given up.
"""

from __future__ import annotations

import logging

from paho.mqtt import client as paho

from regatta_protocol.bus import Message
from regatta_protocol.codec import MAX_PAYLOAD_BYTES
from regatta_protocol.mqtt.crossing import Door
from regatta_protocol.mqtt.ending import Ending
from regatta_protocol.mqtt.packets import ACK_BYTES, PACKET_BYTES
from regatta_protocol.traffic import Cause, Meter, cause_of

__all__ = ["Arrivals"]

logger = logging.getLogger(__name__)

_MAX_HELD = 1000  # messages between CONNACK and SUBACK; the same length as the broker's own queue


class Arrivals:
    """The messages that one connection brings. Used by the network's thread."""

    def __init__(self, client: paho.Client, door: Door, meter: Meter, ending: Ending, inbox_wait_s: float) -> None:
        self._client = client
        self._door = door
        self._meter = meter
        self._ending = ending
        self._inbox_wait_s = inbox_wait_s
        self._held: list[paho.MQTTMessage] | None = []  # None once the owner knows of the connection

    def take(self, message: paho.MQTTMessage) -> None:
        """Take in a message that has come, or hold it."""
        self._door.bytes_received += len(message.payload)
        wrong = _what_is_wrong(message)
        cause = Cause.OTHER if wrong else cause_of(message.topic)
        self._meter.received(cause, len(message.payload) + PACKET_BYTES)
        if wrong:
            # Acknowledged all the same, or it would come back for ever.
            self._door.dropped += 1
            logger.warning("event=mqtt_dropped reason=%s", wrong)
            self._client.ack(message.mid, message.qos)
        elif self._held is None:
            self._deliver(message)
        elif len(self._held) < _MAX_HELD:
            self._held.append(message)
        else:
            self._ending.because(f"over {_MAX_HELD} messages came before the broker confirmed the subscriptions")

    def release(self) -> None:
        """Take in what was held, and hold nothing any more: the owner has been told of the connection."""
        held, self._held = self._held or [], None
        for message in held:
            self._deliver(message)

    def _deliver(self, message: paho.MQTTMessage) -> None:
        if self._ending.reason is not None:
            return
        event = Message(message.topic, bytes(message.payload), bool(message.retain))
        if message.qos == 0:
            if not self._door.deliver_now(event):
                self._door.dropped += 1
                logger.debug("event=mqtt_dropped topic=%s reason=inbox_full", event.topic)
        elif self._door.deliver(event):
            self._client.ack(message.mid, message.qos)
            self._meter.sent(cause_of(event.topic), ACK_BYTES)
        else:
            self._ending.because(
                f"the inbox is full for over {self._inbox_wait_s:g} s: {event.topic} is left to the broker"
            )


def _what_is_wrong(message: paho.MQTTMessage) -> str | None:
    """Return why a message cannot be passed on, or None."""
    try:
        topic = message.topic
    except UnicodeDecodeError:
        return "topic_not_utf8"
    if len(message.payload) > MAX_PAYLOAD_BYTES:
        return f"too_large bytes={len(message.payload)} topic={topic[:120]}"
    return None
