"""One connection from its first packet to its end: its session, and whose turn it is to read and to write.

paho's own loop is not used: it retries without jitter, its queue of QoS 0 messages has no bound, and its select()
fails above file descriptor 1023. Its documented interface for foreign event loops is.
"""

from __future__ import annotations

import logging
import select
import socket
import ssl
import threading
import time
from typing import cast

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, LogLevel, MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from regatta_protocol.bus import Connected
from regatta_protocol.mqtt.arriving import Arrivals
from regatta_protocol.mqtt.crossing import Door, Waker
from regatta_protocol.mqtt.departing import Departures
from regatta_protocol.mqtt.ending import Ending
from regatta_protocol.mqtt.packets import MAX_PACKET_BYTES, PING_BYTES
from regatta_protocol.mqtt.settings import MqttConfig, advice, tls_context
from regatta_protocol.outgoing import Outgoing
from regatta_protocol.traffic import Cause, Meter, read_tcp_totals

__all__ = ["Connection"]

logger = logging.getLogger(__name__)

_FILTERS_PER_SUBSCRIBE = 8  # AWS IoT Core takes no more
_READ_BURST = 64  # packets read before writing gets its turn


class Connection:
    """One life of a paho client. Used by the network's thread."""

    def __init__(
        self, config: MqttConfig, outgoing: Outgoing, door: Door, waker: Waker, stopping: threading.Event, meter: Meter
    ) -> None:
        self.connected_at_s: float | None = None
        self._config = config
        self._outgoing = outgoing
        self._door = door
        self._waker = waker
        self._stopping = stopping
        self._meter = meter
        self._ending = Ending()
        self._client = self._make_client()
        self._arrivals = Arrivals(self._client, door, meter, self._ending, config.inbox_wait_s)
        self._departures = Departures(self._client, outgoing, door, meter, self._ending, stopping)
        self._subscribing: set[int] = set()  # message ids of SUBSCRIBEs without answer
        self._session_present = False
        self._paho_error: str | None = None  # what paho logged last as an error

    def run(self) -> str:
        """Connect and serve until the connection ends; return why it ended."""
        config = self._config
        try:
            context = tls_context(config)
            if context is not None:
                self._client.tls_set_context(context)
            self._client.connect(config.host, config.port, config.keepalive_s)
        except (OSError, ValueError) as err:
            return f"cannot connect to {config.host}:{config.port}: {err}{advice(err)}"
        try:
            return self._serve()
        except Exception as err:  # paho parses what strangers send, and raises anything
            logger.exception("event=mqtt_connection_failed broker=%s:%s", config.host, config.port)
            return f"the broker at {config.host}:{config.port} sent what cannot be read: {err!r}"
        finally:
            left = self._client.socket()
            if left is not None:  # not by DISCONNECT: then the broker says our will
                self._settle(rest=Cause.CONNECTION)
                left.close()

    def let_go(self) -> None:
        """Have paho's client know this connection no more, so that both are freed at once, with 30 KB, mostly TLS.

        A circle of them would wait for a collection of garbage of all ages, and Python makes one only when objects have
        grown old that are a quarter as many as those that it looked at last: after hundreds of connections.
        """
        client = self._client
        client.on_connect = client.on_subscribe = client.on_message = client.on_publish = client.on_log = None

    def _make_client(self) -> paho.Client:
        config = self._config
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=config.client_id,
            clean_session=config.clean_session,
            protocol=MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.max_inflight_messages_set(config.max_inflight)
        client.connect_timeout = config.connect_timeout_s
        if config.user_name is not None:
            client.username_pw_set(config.user_name, config.password)
        if config.will is not None:
            client.will_set(config.will.topic, config.will.payload, qos=1, retain=config.will.retain)
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_log = self._on_log
        client.on_socket_register_write = _no_write_now
        return client

    def _serve(self) -> str:
        opened_s = time.monotonic()
        stopping_s: float | None = None
        tick_s = min(max(self._config.keepalive_s / 8, 0.1), 15.0)
        while self._ending.reason is None and self._client.socket() is not None:
            self._turn(0.1 if self.connected_at_s is None else tick_s)
            now_s = time.monotonic()
            if self.connected_at_s is None and now_s - opened_s > self._config.connect_timeout_s:
                return f"the broker did not answer within {self._config.connect_timeout_s:g} s"
            if self._stopping.is_set():
                stopping_s = now_s if stopping_s is None else stopping_s
                if self.connected_at_s is None or now_s - stopping_s > self._config.stop_timeout_s:
                    return "stopped before all was acknowledged"
                self._departures.say_goodbye(self._config.will)
        if stopping_s is not None:
            return "stopped"
        return self._ending.reason or self._paho_error or "the connection was closed"

    def _turn(self, timeout_s: float) -> None:
        """Wait for something to do, at most `timeout_s`, and do it."""
        client = self._client
        connection = cast("socket.socket | ssl.SSLSocket", client.socket())
        poller = select.poll()
        poller.register(self._waker.fileno(), select.POLLIN)
        poller.register(connection.fileno(), select.POLLIN | (select.POLLOUT if client.want_write() else 0))
        if self._stopping.is_set():
            timeout_s = min(timeout_s, 0.05)
        ready = dict(poller.poll(0 if _pending(connection) else int(timeout_s * 1000)))
        self._waker.clear()
        if _pending(connection) or ready.get(connection.fileno(), 0) & ~select.POLLOUT:
            self._read(connection)
        if self.connected_at_s is not None:
            self._departures.send()
        if client.socket() is not None and client.want_write():
            client.loop_write()
        if client.socket() is not None:
            client.loop_misc()
        if self.connected_at_s is not None:
            self._settle()

    def _settle(self, rest: Cause | None = None) -> None:
        """Count what the connection has cost since the last time (traffic.py)."""
        connection = cast("socket.socket | None", self._client.socket())
        if connection is not None:
            self._meter.settle(read_tcp_totals(connection), rest)

    def _read(self, connection: socket.socket | ssl.SSLSocket) -> None:
        """Read what has come, before anything is written: a write to a closed connection would throw it away."""
        client = self._client
        for _ in range(_READ_BURST):
            client.loop_read()
            # paho has no limit on what it gathers for one packet, and no public way to ask; MQTT 3.1.1 has none either.
            expected = client._in_packet["remaining_length"]
            if expected > MAX_PACKET_BYTES:
                self._ending.because(
                    f"the broker began a packet of {expected} bytes, over the limit of {MAX_PACKET_BYTES}"
                )
            if self._ending.reason is not None or client.socket() is None or not _readable(connection):
                return

    def _become_connected(self) -> None:
        self._settle(rest=Cause.CONNECTION)
        self.connected_at_s = time.monotonic()
        self._outgoing.open()
        logger.info(
            "event=mqtt_connected broker=%s:%s session_present=%s",
            self._config.host,
            self._config.port,
            self._session_present,
        )
        if not self._door.deliver(Connected(self._session_present)):
            self._ending.because("the inbox is full")
        self._arrivals.release()

    def _on_connect(
        self,
        client: paho.Client,
        userdata: object,
        flags: paho.ConnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            self._ending.because(f"the broker refused the connection: {reason}")
            return
        self._session_present = flags.session_present
        filters = self._config.filters
        for start in range(0, len(filters), _FILTERS_PER_SUBSCRIBE):
            _, mid = client.subscribe([(text, 1) for text in filters[start : start + _FILTERS_PER_SUBSCRIBE]])
            self._subscribing.add(mid or 0)
        if not self._subscribing:
            self._become_connected()

    def _on_subscribe(
        self, client: paho.Client, userdata: object, mid: int, reasons: list[ReasonCode], properties: Properties | None
    ) -> None:
        refused = [str(reason) for reason in reasons if reason.is_failure]
        if refused:
            self._ending.because(f"the broker refused a subscription: {', '.join(refused)}")
            return
        self._subscribing.discard(mid)
        if not self._subscribing and self.connected_at_s is None:
            self._become_connected()

    def _on_message(self, client: paho.Client, userdata: object, message: paho.MQTTMessage) -> None:
        self._arrivals.take(message)

    def _on_publish(
        self, client: paho.Client, userdata: object, mid: int, reason: ReasonCode, properties: Properties | None
    ) -> None:
        self._departures.acknowledged(mid)

    def _on_log(self, client: paho.Client, userdata: object, level: int, text: str) -> None:
        if level == LogLevel.MQTT_LOG_ERR:
            self._paho_error = text[:500]
        elif text == "Sending PINGREQ":  # paho has no other way to tell of these two
            self._meter.sent(Cause.KEEPALIVE, PING_BYTES)
        elif text == "Received PINGRESP":
            self._meter.received(Cause.KEEPALIVE, PING_BYTES)


def _pending(connection: socket.socket | ssl.SSLSocket) -> int:
    """Return how many bytes TLS has taken from the network and not given out: poll() does not see those."""
    return connection.pending() if isinstance(connection, ssl.SSLSocket) else 0


def _readable(connection: socket.socket | ssl.SSLSocket) -> bool:
    """Return whether more can be read at once."""
    if _pending(connection):
        return True
    poller = select.poll()
    poller.register(connection.fileno(), select.POLLIN)
    return bool(poller.poll(0))


def _no_write_now(client: paho.Client, userdata: object, connection: object) -> None:
    """Keep paho from writing within publish(): our loop writes."""
