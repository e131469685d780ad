"""Messages on their way to the broker: a bounded line between the owner's thread and the network's.

Pure bookkeeping under one lock; mqtt/ does the sending. Invariants:
- at most `max_messages` and `max_bytes` are waiting or sent without acknowledgement;
- a QoS 1 message stays until `done`, over any number of connections, in the order of its coming;
- a QoS 0 message leaves with the connection it was meant for.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Literal, NamedTuple

from regatta_protocol.codec import MAX_PAYLOAD_BYTES
from regatta_protocol.errors import Misuse, Retryable, TooLarge

__all__ = ["Outgoing", "OutgoingMessage"]


class OutgoingMessage(NamedTuple):
    token: int
    topic: str
    payload: bytes
    qos: Literal[0, 1]
    retain: bool


class Outgoing:
    """The line. `add` is for the owner of the bus, everything else for the network's thread."""

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._open = False
        self._last_token = 0
        self._bytes = 0
        self._waiting: deque[OutgoingMessage] = deque()
        self._sent: dict[int, OutgoingMessage] = {}

    def add(self, topic: str, payload: bytes, qos: Literal[0, 1], retain: bool) -> int:
        """Append a message and return its token.

        Raises:
            Retryable: when there is no connection, or the line is full.
            TooLarge: when the payload is over the limit of codec.py.
            Misuse: when the topic is empty or has a wildcard.
        """
        if not topic or "+" in topic or "#" in topic:
            raise Misuse(f"cannot publish to topic {topic!r}: it is empty or has a wildcard")
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise TooLarge(f"message of {len(payload)} bytes to {topic} is over the limit of {MAX_PAYLOAD_BYTES}")
        with self._lock:
            if not self._open:
                raise Retryable(f"not connected to the broker: publish to {topic} again after the next Connected")
            count = len(self._waiting) + len(self._sent)
            if count >= self._max_messages or self._bytes + len(payload) > self._max_bytes:
                raise Retryable(
                    f"{count} messages of {self._bytes} bytes are on their way already (limits {self._max_messages} "
                    f"and {self._max_bytes}): publish to {topic} again after some Published"
                )
            self._last_token += 1
            self._waiting.append(OutgoingMessage(self._last_token, topic, payload, qos, retain))
            self._bytes += len(payload)
            return self._last_token

    def take(self) -> OutgoingMessage | None:
        """Return the next message to send, from now on counted as sent; None when none waits."""
        with self._lock:
            if not self._waiting:
                return None
            message = self._waiting.popleft()
            self._sent[message.token] = message
            return message

    def done(self, token: int) -> OutgoingMessage | None:
        """Forget a sent message and return it; None when the token is not of a sent one."""
        with self._lock:
            message = self._sent.pop(token, None)
            if message is not None:
                self._bytes -= len(message.payload)
            return message

    def open(self) -> None:
        """Take messages from now on: there is a connection."""
        with self._lock:
            self._open = True

    def close(self) -> None:
        """Take no more: the connection is gone. What is of QoS 1 waits for the next one, the rest is dropped."""
        with self._lock:
            self._open = False
            self._waiting = deque(m for m in (*self._sent.values(), *self._waiting) if m.qos == 1)
            self._sent.clear()
            self._bytes = sum(len(m.payload) for m in self._waiting)

    def idle(self) -> bool:
        """Say whether nothing is on its way."""
        with self._lock:
            return not self._waiting and not self._sent
