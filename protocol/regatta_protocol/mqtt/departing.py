"""Messages on their way out: from the bounded line to the broker, until it acknowledges them, and a goodbye at the end.

A message of QoS 1 is done when the owner has been told so. Where that cannot be told, it still counts as sent, and so
goes out again over the next connection.
"""

from __future__ import annotations

import threading
import time

from paho.mqtt import client as paho
from paho.mqtt.enums import MQTTErrorCode

from regatta_protocol.bus import Published, Will
from regatta_protocol.mqtt.crossing import Door
from regatta_protocol.mqtt.ending import Ending
from regatta_protocol.mqtt.packets import ACK_BYTES, publish_bytes
from regatta_protocol.outgoing import Outgoing
from regatta_protocol.traffic import Meter, cause_of

__all__ = ["Departures"]


class Departures:
    """The messages that one connection takes away. Used by the network's thread."""

    def __init__(
        self,
        client: paho.Client,
        outgoing: Outgoing,
        door: Door,
        meter: Meter,
        ending: Ending,
        stopping: threading.Event,
    ) -> None:
        self._client = client
        self._outgoing = outgoing
        self._door = door
        self._meter = meter
        self._ending = ending
        self._stopping = stopping
        self._tokens: dict[int, int] = {}  # paho's message id -> our token
        self._goodbye: int | None = None  # message id of the will that is said at last; 0 when there is none to say

    def send(self) -> None:
        """Send what waits in the line; after the goodbye nothing more."""
        if self._goodbye is not None:
            return
        while self._ending.reason is None and (message := self._outgoing.take()) is not None:
            info = self._client.publish(message.topic, message.payload, message.qos, message.retain)
            self._meter.sent(cause_of(message.topic), publish_bytes(message.topic, message.payload))
            if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
                self._ending.because(f"a message to {message.topic} could not be sent: {paho.error_string(info.rc)}")
            self._tokens[info.mid] = message.token

    def say_goodbye(self, will: Will | None) -> None:
        """Once all is acknowledged say the will, and once that is acknowledged say DISCONNECT; to be called again."""
        if self._goodbye is None:
            self.send()
            if not self._outgoing.idle():
                return
            self._goodbye = 0
            if will is not None:
                self._goodbye = self._client.publish(will.topic, will.payload, 1, will.retain).mid
                self._meter.sent(cause_of(will.topic), publish_bytes(will.topic, will.payload))
        elif self._goodbye == 0:
            self._client.disconnect()
            self._client.loop_write()

    def acknowledged(self, mid: int) -> None:
        """Take note of what has left (QoS 0), or was acknowledged (QoS 1)."""
        if mid == self._goodbye:
            self._goodbye = 0
            return
        token = self._tokens.pop(mid, None)
        if token is None:
            return
        if not self._door.deliver(Published(token)):
            self._ending.because("the inbox is full")
            if not self._stopping.is_set():
                return
        message = self._outgoing.done(token)
        if message is not None:
            self._door.bytes_sent += len(message.payload)
            if message.qos:
                self._meter.received(cause_of(message.topic), ACK_BYTES)
                # MQTT 3.1.1, 3.1.2.10: PINGREQ is for when nothing else is sent. paho (2.2) takes note of its own pings
                # only, and would ping on a metered link between heartbeats that are acknowledged anyway.
                self._client._last_msg_out = time.monotonic()
