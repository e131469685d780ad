"""The one MQTT adapter: `MqttBus`, a connection over mutual TLS that keeps itself up. Only this module imports paho.

A broker of somebody else's, where a smart plug tells its power, may be reached with a password, and without TLS where
it offers none; the fleet's own broker always with certificates (the paths of an identity are never None).

One thread per bus does all the network work and owns the paho client; the owner's thread only appends to a bounded
line (outgoing.py), and this thread only puts events on the owner's bounded inbox. A new paho client is made for each
connection, so nothing of a broken one is left, and renewed certificates are read again from their files.

paho's own loop is not used: it retries without jitter, its queue of QoS 0 messages has no bound, and its select()
fails above file descriptor 1023. Its documented interface for foreign event loops is.

What happens when the inbox is full: a QoS 0 message is dropped and counted (`dropped`; the receiver of a transfer asks
again). For anything else the thread waits `inbox_wait_s`; if there is still no room it gives the connection up
without acknowledging the message, so that the broker keeps it in the session and sends it again later.

Not here: what is said, and when. MQTT 3.1.1 and QoS 0 and 1 only, so that every broker will do (wire.md).
"""

from __future__ import annotations

import datetime
import logging
import queue
import random
import select
import socket
import ssl
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, LogLevel, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from regatta_protocol.bus import Connected, Disconnected, Event, Inbox, Message, Published, Will
from regatta_protocol.codec import MAX_PAYLOAD_BYTES
from regatta_protocol.errors import Misuse
from regatta_protocol.outgoing import Outgoing
from regatta_protocol.threads import BoundedThread
from regatta_protocol.traffic import Cause, Ledger, Meter, cause_of, read_tcp_totals

__all__ = ["MAX_PACKET_BYTES", "MqttBus", "MqttConfig", "backoff_s"]

logger = logging.getLogger(__name__)

MAX_PACKET_BYTES = 256 * 1024  # what the broker is set to carry (wire.md); a longer packet ends the connection
_FILTERS_PER_SUBSCRIBE = 8  # AWS IoT Core takes no more
_MAX_HELD = 1000  # messages between CONNACK and SUBACK; the same length as the broker's own queue
_READ_BURST = 64  # packets read before writing gets its turn
_INBOX_POLL_S = 0.2  # how soon stop() ends a wait for room in the inbox
_MAX_REASONS = 5  # told in one outage: its log must not grow with its length
# A PUBLISH beside its topic and payload, a PUBACK and a PINGREQ, each in a TLS 1.3 record of its own (22 bytes more).
_PACKET_BYTES, _ACK_BYTES, _PING_BYTES = 30, 26, 24
_NOT_VALID_NOW = (9, 10)  # OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED
_STABLE_S = 30.0  # a connection that held this long forgets earlier failures
_NO_MEMORY_S = 1.0  # before the next try, when there is not even memory to say so


@dataclass(frozen=True)
class MqttConfig:
    """To whom, as whom, and within which limits."""

    host: str  # a name or address in the broker's certificate
    port: int
    client_id: str  # equal to the certificate's common name: the broker takes it from there
    ca_path: Path | None  # who signs the broker's certificate; None: no TLS
    cert_path: Path | None  # ours; None where a password, or nothing, says who we are
    key_path: Path | None
    filters: tuple[str, ...]
    will: Will | None = None
    user_name: str | None = None
    password: str | None = field(default=None, repr=False)
    keepalive_s: int = 60
    clean_session: bool = False  # False: the broker keeps commands for us while we are away
    connect_timeout_s: float = 10.0
    reconnect_base_s: float = 1.0
    reconnect_cap_s: float = 120.0  # a handshake costs the broker 1.2-1.6 ms of CPU (wire.md)
    max_inflight: int = 20  # QoS 1 messages without acknowledgement; the broker's own window (wire.md)
    max_outgoing: int = 1000
    max_outgoing_bytes: int = 16 * 1024 * 1024
    inbox_wait_s: float = 5.0
    stop_timeout_s: float = 3.0


def backoff_s(attempt: int, base_s: float, cap_s: float, chance: random.Random) -> float:
    """Return how long to wait before try number `attempt` (from 0): full jitter below an exponential with a cap."""
    return chance.uniform(0.0, min(cap_s, base_s * 2.0 ** min(attempt, 30)))


def _tls_context(config: MqttConfig) -> ssl.SSLContext | None:
    """Return the context of mutual TLS: the CA given alone, host names checked, TLS 1.2 at least; None without a CA.

    Raises:
        OSError: when a file is missing or is no certificate or key (ssl.SSLError is an OSError).
    """
    if config.ca_path is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(config.ca_path)
    if config.cert_path is not None:
        context.load_cert_chain(config.cert_path, config.key_path)
    return context


class MqttBus:
    """A `Bus` over a real broker. Build, `start`, take events from the inbox, `stop`; one life only."""

    def __init__(
        self, config: MqttConfig, inbox: Inbox, chance: random.Random | None = None, ledger: Ledger | None = None
    ) -> None:
        """
        Args:
            inbox: a bounded queue; see the module for what happens when it is full.
            chance: what jitters the retries; by default a generator of its own.
            ledger: where the bytes of all connections are counted by their causes.
        """
        self._config = config
        self._chance = chance or random.Random()  # noqa: S311 - jitter, not secrets
        self._outgoing = Outgoing(config.max_outgoing, config.max_outgoing_bytes)
        self._stopping = threading.Event()
        self._door = _Door(inbox, self._stopping, config.inbox_wait_s)
        self._waker = _Waker()
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
            _tls_context(self._config)
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
        connection: _Connection | None = None
        try:
            connection = _Connection(
                self._config, self._outgoing, self._door, self._waker, self._stopping, Meter(self._ledger)
            )
            reason = connection.run()
        except Exception as err:  # want of memory or descriptors: a thread that ended would leave us offline for ever
            logger.exception("event=mqtt_failed broker=%s:%s", self._config.host, self._config.port)
            reason = f"cannot connect to {self._config.host}:{self._config.port}: {err!r}"
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


class _Waker:
    """Ends the network thread's poll() from another thread."""

    def __init__(self) -> None:
        self._receiver, self._sender = socket.socketpair()
        self._receiver.setblocking(False)
        self._sender.setblocking(False)

    def fileno(self) -> int:
        return self._receiver.fileno()

    def wake(self) -> None:
        try:
            self._sender.send(b"\0")
        except OSError:  # full, so it wakes anyway; or closed, so nobody sleeps
            return

    def clear(self) -> None:
        try:
            while self._receiver.recv(4096):
                pass
        except BlockingIOError:
            return

    def close(self) -> None:
        self._receiver.close()
        self._sender.close()


class _Door:
    """The way into the owner's inbox, with the counters of what went through."""

    def __init__(self, inbox: Inbox, stopping: threading.Event, wait_s: float) -> None:
        self._inbox = inbox
        self._stopping = stopping
        self._wait_s = wait_s
        self.bytes_received = 0
        self.bytes_sent = 0
        self.dropped = 0

    def deliver_now(self, event: Event) -> bool:
        """Put the event if there is room this moment."""
        try:
            self._inbox.put(event, block=False)
        except queue.Full:
            return False
        return True

    def deliver(self, event: Event, wait_s: float | None = None) -> bool:
        """Put the event, waiting for room for a bounded time, and not at all once the bus is stopping."""
        deadline = time.monotonic() + (self._wait_s if wait_s is None else wait_s)
        while not self.deliver_now(event):
            if self._stopping.is_set() or time.monotonic() >= deadline:
                return False
            try:
                self._inbox.put(event, timeout=_INBOX_POLL_S)
            except queue.Full:
                continue
            return True
        return True

    def deliver_surely(self, event: Event) -> None:
        """Put the event however long it takes, unless the bus is stopping."""
        self.deliver(event, wait_s=float("inf"))


class _Connection:
    """One connection from its first packet to its end, on the network thread."""

    def __init__(
        self, config: MqttConfig, outgoing: Outgoing, door: _Door, waker: _Waker, stopping: threading.Event,
        meter: Meter,
    ) -> None:  # fmt: skip
        self.connected_at_s: float | None = None
        self._config = config
        self._outgoing = outgoing
        self._door = door
        self._waker = waker
        self._stopping = stopping
        self._meter = meter
        self._client = self._make_client()
        self._tokens: dict[int, int] = {}  # paho's message id -> our token
        self._subscribing: set[int] = set()  # message ids of SUBSCRIBEs without answer
        self._held: list[paho.MQTTMessage] | None = []  # what came before we are Connected; None afterwards
        self._session_present = False
        self._failure: str | None = None  # why we end the connection
        self._paho_error: str | None = None  # what paho logged last as an error
        self._goodbye: int | None = None  # message id of the will that stop() says; 0 when there is none to say

    def run(self) -> str:
        """Connect and serve until the connection ends; return why it ended."""
        config = self._config
        try:
            context = _tls_context(config)
            if context is not None:
                self._client.tls_set_context(context)
            self._client.connect(config.host, config.port, config.keepalive_s)
        except (OSError, ValueError) as err:
            return f"cannot connect to {config.host}:{config.port}: {err}{_advice(err)}"
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
        while self._failure is None and self._client.socket() is not None:
            self._turn(0.1 if self.connected_at_s is None else tick_s)
            now_s = time.monotonic()
            if self.connected_at_s is None and now_s - opened_s > self._config.connect_timeout_s:
                return f"the broker did not answer within {self._config.connect_timeout_s:g} s"
            if self._stopping.is_set():
                stopping_s = now_s if stopping_s is None else stopping_s
                if self.connected_at_s is None or now_s - stopping_s > self._config.stop_timeout_s:
                    return "stopped before all was acknowledged"
                self._say_goodbye()
        if stopping_s is not None:
            return "stopped"
        return self._failure or self._paho_error or "the connection was closed"

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
        if self.connected_at_s is not None and self._goodbye is None:
            self._send_waiting()
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
                self._fail(f"the broker began a packet of {expected} bytes, over the limit of {MAX_PACKET_BYTES}")
            if self._failure is not None or client.socket() is None or not _readable(connection):
                return

    def _send_waiting(self) -> None:
        while self._failure is None and (message := self._outgoing.take()) is not None:
            info = self._client.publish(message.topic, message.payload, message.qos, message.retain)
            self._meter.sent(cause_of(message.topic), _publish_bytes(message.topic, message.payload))
            if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
                self._fail(f"a message to {message.topic} could not be sent: {paho.error_string(info.rc)}")
            self._tokens[info.mid] = message.token

    def _say_goodbye(self) -> None:
        """Once all is acknowledged say the will, and once that is acknowledged say DISCONNECT."""
        if self._goodbye is None:
            self._send_waiting()
            if not self._outgoing.idle():
                return
            will = self._config.will
            self._goodbye = 0
            if will is not None:
                self._goodbye = self._client.publish(will.topic, will.payload, 1, will.retain).mid
                self._meter.sent(cause_of(will.topic), _publish_bytes(will.topic, will.payload))
        elif self._goodbye == 0:
            self._client.disconnect()
            self._client.loop_write()

    def _fail(self, reason: str) -> None:
        self._failure = self._failure or reason

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
            self._fail("the inbox is full")
        held, self._held = self._held or [], None
        for message in held:
            self._take_in(message)

    def _take_in(self, message: paho.MQTTMessage) -> None:
        """Put one message into the inbox, and acknowledge it only then."""
        if self._failure is not None:
            return
        event = Message(message.topic, bytes(message.payload), bool(message.retain))
        if message.qos == 0:
            if not self._door.deliver_now(event):
                self._door.dropped += 1
                logger.debug("event=mqtt_dropped topic=%s reason=inbox_full", event.topic)
        elif self._door.deliver(event):
            self._client.ack(message.mid, message.qos)
            self._meter.sent(cause_of(event.topic), _ACK_BYTES)
        else:
            self._fail(
                f"the inbox is full for over {self._config.inbox_wait_s:g} s: {event.topic} is left to the broker"
            )

    def _on_connect(
        self,
        client: paho.Client,
        userdata: object,
        flags: paho.ConnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            self._fail(f"the broker refused the connection: {reason}")
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
            self._fail(f"the broker refused a subscription: {', '.join(refused)}")
            return
        self._subscribing.discard(mid)
        if not self._subscribing and self.connected_at_s is None:
            self._become_connected()

    def _on_message(self, client: paho.Client, userdata: object, message: paho.MQTTMessage) -> None:
        self._door.bytes_received += len(message.payload)
        wrong = _what_is_wrong(message)
        cause = Cause.OTHER if wrong else cause_of(message.topic)
        self._meter.received(cause, len(message.payload) + _PACKET_BYTES)
        if wrong:
            # Acknowledged all the same, or it would come back for ever.
            self._door.dropped += 1
            logger.warning("event=mqtt_dropped reason=%s", wrong)
            client.ack(message.mid, message.qos)
        elif self._held is None:
            self._take_in(message)
        elif len(self._held) < _MAX_HELD:
            self._held.append(message)
        else:
            self._fail(f"over {_MAX_HELD} messages came before the broker confirmed the subscriptions")

    def _on_publish(
        self, client: paho.Client, userdata: object, mid: int, reason: ReasonCode, properties: Properties | None
    ) -> None:
        if mid == self._goodbye:
            self._goodbye = 0
            return
        token = self._tokens.pop(mid, None)
        if token is None:
            return
        if not self._door.deliver(Published(token)):
            self._fail("the inbox is full")  # still counted as sent, so a QoS 1 message goes out again
            if not self._stopping.is_set():
                return
        message = self._outgoing.done(token)
        if message is not None:
            self._door.bytes_sent += len(message.payload)
            if message.qos:
                self._meter.received(cause_of(message.topic), _ACK_BYTES)
                # MQTT 3.1.1, 3.1.2.10: PINGREQ is for when nothing else is sent. paho (2.2) takes note of its own pings
                # only, and would ping on a metered link between heartbeats that are acknowledged anyway.
                client._last_msg_out = time.monotonic()

    def _on_log(self, client: paho.Client, userdata: object, level: int, text: str) -> None:
        if level == LogLevel.MQTT_LOG_ERR:
            self._paho_error = text[:500]
        elif text == "Sending PINGREQ":  # paho has no other way to tell of these two
            self._meter.sent(Cause.KEEPALIVE, _PING_BYTES)
        elif text == "Received PINGRESP":
            self._meter.received(Cause.KEEPALIVE, _PING_BYTES)


def _advice(err: Exception) -> str:
    """Return what a fault of TLS most likely comes from: a clock that is not set, or somebody else who answers."""
    if isinstance(err, ssl.SSLCertVerificationError):
        now = datetime.datetime.now(datetime.timezone.utc)
        when = f"; this machine's clock says {now:%Y-%m-%d %H:%M} UTC: set it if that is wrong"
        return when if err.verify_code in _NOT_VALID_NOW else ""
    if isinstance(err, ssl.SSLError) and err.reason == "WRONG_VERSION_NUMBER":
        return "; what answers there does not speak TLS: perhaps a captive portal of the network that wants a login"
    return ""


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


def _publish_bytes(topic: str, payload: bytes) -> int:
    """Return about how long a PUBLISH is: what it counts beside others of the same moment."""
    return len(topic) + len(payload) + _PACKET_BYTES


def _what_is_wrong(message: paho.MQTTMessage) -> str | None:
    """Return why a message cannot be passed on, or None."""
    try:
        topic = message.topic
    except UnicodeDecodeError:
        return "topic_not_utf8"
    if len(message.payload) > MAX_PAYLOAD_BYTES:
        return f"too_large bytes={len(message.payload)} topic={topic[:120]}"
    return None


def _no_write_now(client: paho.Client, userdata: object, connection: object) -> None:
    """Keep paho from writing within publish(): our loop writes."""
