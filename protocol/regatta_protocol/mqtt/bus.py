"""The bus: a connection to the broker after the other, for ever, with full jitter between tries.

The end of a connection is told once, and again only for a few other reasons, so that neither the log nor the inbox
grows with the length of an outage.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from typing import Literal

from regatta_protocol.backoff import backoff_s
from regatta_protocol.bus import Disconnected, Inbox
from regatta_protocol.errors import Misuse
from regatta_protocol.mqtt.connection import Connection
from regatta_protocol.mqtt.crossing import Door, Waker
from regatta_protocol.mqtt.settings import MqttConfig, tls_context
from regatta_protocol.outgoing import Outgoing
from regatta_protocol.threads import BoundedThread
from regatta_protocol.traffic import Ledger, Meter

__all__ = ["MqttBus"]

logger = logging.getLogger(__name__)

_MAX_REASONS = 5  # told in one outage: its log must not grow with its length
_STABLE_S = 30.0  # a connection that held this long forgets earlier failures
_NO_MEMORY_S = 1.0  # before the next try, when there is not even memory to say so


class MqttBus:
    """A `Bus` over a real broker. Build, `start`, take events from the inbox, `stop`; one life only."""

    def __init__(
        self, config: MqttConfig, inbox: Inbox, chance: random.Random | None = None, ledger: Ledger | None = None
    ) -> None:
        """
        Args:
            inbox: a bounded queue; crossing.py says what happens when it is full.
            chance: what jitters the retries; by default a generator of its own.
            ledger: where the bytes of all connections are counted by their causes.
        """
        self._config = config
        self._chance = chance or random.Random()  # noqa: S311 - jitter, not secrets
        self._outgoing = Outgoing(config.max_outgoing, config.max_outgoing_bytes)
        self._stopping = threading.Event()
        self._door = Door(inbox, self._stopping, config.inbox_wait_s)
        self._waker = Waker()
        self._ledger = ledger or Ledger()
        self._thread = BoundedThread(self._main, f"mqtt-{config.client_id}")
        self._told: set[str] = set()  # reasons said in Disconnected since the last Connected

    @property
    def bytes_received(self) -> int:
        """Payload bytes of all messages that arrived, dropped ones included."""
        return self._door.bytes_received

    @property
    def bytes_sent(self) -> int:
        """Payload bytes of messages that left (QoS 0) or were acknowledged (QoS 1)."""
        return self._door.bytes_sent

    @property
    def dropped(self) -> int:
        """Messages thrown away: of QoS 0 for want of room in the inbox, or over the payload limit."""
        return self._door.dropped

    def start(self) -> None:
        """Begin connecting, and go on for ever (full jitter between tries). Returns at once.

        Raises:
            Misuse: when the certificates or the key cannot be read.
            Exhausted: when the board gives no thread for it.
        """
        try:
            tls_context(self._config)
        except OSError as err:
            files = (self._config.ca_path, self._config.cert_path, self._config.key_path)
            needed = ", ".join(str(path) for path in files if path is not None)
            raise Misuse(f"cannot connect to the broker without {needed}: {err}") from err
        self._thread.start()

    def publish(self, topic: str, payload: bytes, *, qos: Literal[0, 1] = 1, retain: bool = False) -> int:
        """Hand a message over; returns a token that comes back in `Published`.

        Raises:
            Retryable: when not connected, or too many messages are on their way.
            TooLarge: when the payload is over the limit of codec.py.
            Misuse: when the topic is empty or has a wildcard.
        """
        token = self._outgoing.add(topic, payload, qos, retain)
        self._waker.wake()
        return token

    def stop(self) -> None:
        """Disconnect cleanly, with the will said as a last message, and end the thread. May be called twice."""
        self._stopping.set()
        self._waker.wake()
        if self._thread.is_alive() and not self._thread.is_current():
            # A thread that is stuck in name resolution ends by itself later; it delivers nothing any more.
            self._thread.join(self._config.stop_timeout_s + 1.0)
            if self._thread.is_alive():
                logger.warning("event=mqtt_stop_late broker=%s:%s", self._config.host, self._config.port)

    def _main(self) -> None:
        attempt = 0
        while not self._stopping.is_set():
            try:
                attempt = self._live_once(attempt)
            except MemoryError:  # a thread that ended would leave us offline for ever, and nobody would be told
                time.sleep(_NO_MEMORY_S)
        self._waker.close()

    def _live_once(self, attempt: int) -> int:
        """Serve one connection, tell of its end and wait; return the number of the next try."""
        connected_at_s, reason = self._connect_once()
        self._outgoing.close()
        if connected_at_s is not None:
            self._told.clear()
            if time.monotonic() - connected_at_s >= _STABLE_S:
                attempt = 0
        self._report_down(reason)
        config = self._config
        self._stopping.wait(backoff_s(attempt, config.reconnect_base_s, config.reconnect_cap_s, self._chance))
        return attempt + 1

    def _connect_once(self) -> tuple[float | None, str]:
        """Serve one connection to its end; return since when it stood, or None, and why it ended."""
        connection: Connection | None = None
        try:
            connection = Connection(
                self._config, self._outgoing, self._door, self._waker, self._stopping, Meter(self._ledger)
            )
            reason = connection.run()
        except Exception as err:  # want of memory or descriptors: a thread that ended would leave us offline for ever
            logger.exception("event=mqtt_failed broker=%s:%s", self._config.host, self._config.port)
            reason = f"cannot connect to {self._config.host}:{self._config.port}: {err!r}"
        finally:
            if connection is not None:
                connection.let_go()
        return (connection.connected_at_s if connection is not None else None), reason

    def _report_down(self, reason: str) -> None:
        """Say once that the connection is gone, and again only for a few other reasons."""
        if reason in self._told or len(self._told) >= _MAX_REASONS:
            return
        self._door.deliver_surely(Disconnected(reason))
        self._told.add(reason)
        if not self._stopping.is_set():
            logger.warning(
                "event=mqtt_disconnected broker=%s:%s reason=%s", self._config.host, self._config.port, reason
            )
