"""MqttBus against brokers that misbehave: each is survived, told once, and tried again with jitter.

The brokers here are a few lines of TLS that send fixed bytes: a real one does not misbehave on demand. What works
with a real one is in tests/contract and tests/system.
"""

from __future__ import annotations

import gc
import logging
import queue
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from paho.mqtt import client as paho

from mosquitto import TestAuthority, expect
from regatta_protocol.bus import Connected, Disconnected, Event, Message
from regatta_protocol.codec import MAX_PAYLOAD_BYTES
from regatta_protocol.errors import Misuse
from regatta_protocol.mqtt import MAX_PACKET_BYTES, MqttBus, MqttConfig

CONNACK = bytes.fromhex("20020000")


class RogueBroker:
    """Accepts TLS connections and gives each to a function; `connections` counts them."""

    def __init__(
        self, authority: TestAuthority, behave: Callable[[ssl.SSLSocket], None], host: str = "127.0.0.1"
    ) -> None:
        key_path, cert_path = authority.issue("rogue", (host,))
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(cert_path, key_path)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._behave = behave
        self._done = threading.Event()
        self.port = int(self._listener.getsockname()[1])
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._done.set()

    def _accept(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(plain,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        with suppress(OSError), plain, self._context.wrap_socket(plain, server_side=True) as connection:
            connection.recv(4096)  # CONNECT
            self._behave(connection)


def publish_packet(payload: bytes, topic: bytes = b"rg/b/x/0") -> bytes:
    """Return a PUBLISH of QoS 0."""
    body = len(topic).to_bytes(2, "big") + topic + payload
    length, left = bytearray(), len(body)
    while True:
        left, digit = divmod(left, 128)
        length.append(digit | (0x80 if left else 0))
        if not left:
            return b"\x30" + bytes(length) + body


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> TestAuthority:
    return TestAuthority(tmp_path_factory.mktemp("authority"))


Meet = Callable[..., tuple[MqttBus, "queue.Queue[Event]", RogueBroker]]


@pytest.fixture
def meet(authority: TestAuthority) -> Iterator[Meet]:
    """Return a function that lets a bus meet a broker that behaves as given; all ends with the test."""
    ends: list[Callable[[], None]] = []

    def start(
        behave: Callable[[ssl.SSLSocket], None], **changes: object
    ) -> tuple[MqttBus, queue.Queue[Event], RogueBroker]:
        rogue = RogueBroker(authority, behave)
        config = replace(config_for(authority, rogue.port), **changes)  # type: ignore[arg-type]  # by name
        inbox: queue.Queue[Event] = queue.Queue(100)
        bus = MqttBus(config, inbox)
        bus.start()
        ends.extend((bus.stop, rogue.close))
        return bus, inbox, rogue

    yield start
    for end in ends:
        end()


def config_for(authority: TestAuthority, port: int) -> MqttConfig:
    key_path, cert_path = authority.issue("dev-1")
    return MqttConfig(
        "127.0.0.1", port, "dev-1", authority.ca_path, cert_path, key_path, (),
        connect_timeout_s=0.5, reconnect_base_s=0.01, reconnect_cap_s=0.05, stop_timeout_s=0.5,
    )  # fmt: skip


def linger(connection: ssl.SSLSocket) -> None:
    """Keep the connection until the other side ends it."""
    while connection.recv(4096):
        pass


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"HTTP/1.1 302 Found\r\nLocation: http://portal/\r\n\r\n", ""),  # a captive portal
        (b"\x20\x01\x00", ""),  # a CONNACK that is cut
        (bytes.fromhex("20020005"), "refused"),  # not authorized
        (CONNACK + b"\xf0\x00", ""),  # a packet of no known kind
        (CONNACK + b"\x30\x01\x00", ""),  # a PUBLISH without a topic
        (CONNACK + b"\x30\xff\xff\xff\xff\xff", ""),  # a length of five bytes
        (CONNACK + b"\x30\xff\xff\xff\x7f", f"over the limit of {MAX_PACKET_BYTES}"),  # 256 MB announced
        (CONNACK, ""),  # and closes
        (b"", ""),
    ],
)
def test_a_broker_that_talks_nonsense_is_left_and_tried_again(
    meet: Meet, sent: bytes, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The bus neither dies nor hangs; it says why, and connects again."""
    left = threading.Event()

    def behave(connection: ssl.SSLSocket) -> None:
        connection.sendall(sent)
        if left.is_set():
            linger(connection)

    _, inbox, rogue = meet(behave)

    assert reason in expect(inbox, Disconnected).reason
    wait_until(lambda: rogue.connections >= 3)
    left.set()


def test_a_broker_that_says_nothing_is_left_after_the_timeout(meet: Meet) -> None:
    """TLS stands, but no CONNACK comes."""
    _, inbox, rogue = meet(linger)

    assert "did not answer within 0.5 s" in expect(inbox, Disconnected).reason
    wait_until(lambda: rogue.connections >= 2)


def test_an_outage_is_logged_once_whatever_its_length(meet: Meet, caplog: pytest.LogCaptureFixture) -> None:
    """Ten failed tries give one line and one event, or a log would grow with the outage."""
    with caplog.at_level(logging.INFO, "regatta_protocol.mqtt"):
        _, inbox, rogue = meet(lambda connection: connection.sendall(bytes.fromhex("20020003")))
        wait_until(lambda: rogue.connections >= 10)

    assert sum("mqtt_disconnected" in line for line in caplog.messages) == 1
    assert inbox.qsize() == 1


def test_a_message_over_the_limit_is_dropped_and_the_next_one_passes(meet: Meet) -> None:
    """It would come back for ever if it ended the connection."""

    def behave(connection: ssl.SSLSocket) -> None:
        large = publish_packet(bytes(MAX_PAYLOAD_BYTES + 1))
        connection.sendall(CONNACK + large + publish_packet(b"x", b"rg/\xff") + publish_packet(b"fine"))
        linger(connection)

    bus, inbox, _ = meet(behave)

    assert expect(inbox, Message) == Message("rg/b/x/0", b"fine")
    assert bus.dropped == 2


def test_a_host_that_is_not_in_the_certificate_is_refused(authority: TestAuthority) -> None:
    """Whoever holds another certificate of the fleet, a device's for example, cannot play the broker."""
    rogue = RogueBroker(authority, linger, host="10.0.0.1")
    inbox: queue.Queue[Event] = queue.Queue(10)
    bus = MqttBus(config_for(authority, rogue.port), inbox)
    bus.start()
    try:
        assert "IP address mismatch" in expect(inbox, Disconnected).reason
    finally:
        bus.stop()
        rogue.close()


def test_a_broker_of_another_authority_is_refused(authority: TestAuthority, tmp_path: Path) -> None:
    """Only the fleet's CA counts, whatever the system trusts."""
    rogue = RogueBroker(TestAuthority(tmp_path / "other"), linger)
    inbox: queue.Queue[Event] = queue.Queue(10)
    bus = MqttBus(config_for(authority, rogue.port), inbox)
    bus.start()
    try:
        assert "certificate verify failed" in expect(inbox, Disconnected).reason
    finally:
        bus.stop()
        rogue.close()


def test_a_missing_broker_is_told_and_tried_again(authority: TestAuthority) -> None:
    """Nothing listens: Disconnected says so with the address, and stop() is quick all the same."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
    inbox: queue.Queue[Event] = queue.Queue(10)
    bus = MqttBus(replace(config_for(authority, port), reconnect_base_s=60, reconnect_cap_s=60), inbox)
    bus.start()

    assert f"127.0.0.1:{port}" in expect(inbox, Disconnected).reason
    bus.stop()
    bus.stop()
    assert not any(thread.name == "mqtt-dev-1" and thread.is_alive() for thread in threading.enumerate())


@pytest.mark.parametrize("field", ["ca_path", "cert_path", "key_path"])
@pytest.mark.parametrize("content", [None, "not a certificate"])
def test_certificates_that_cannot_be_read_are_a_misuse_at_once(
    authority: TestAuthority, tmp_path: Path, field: str, content: str | None
) -> None:
    """Retrying will not mend a wrong set-up; the message names the files."""
    path = tmp_path / "file.pem"
    if content is not None:
        path.write_text(content)
    config = replace(config_for(authority, 1), **{field: path})  # type: ignore[arg-type]  # by name

    with pytest.raises(Misuse, match=r"file\.pem"):
        MqttBus(config, queue.Queue(1)).start()


def test_a_bus_that_was_never_started_may_be_stopped(authority: TestAuthority) -> None:
    """For clean-up code that does not know how far it came."""
    MqttBus(config_for(authority, 1), queue.Queue(1)).stop()


def test_want_of_memory_leaves_no_bus_silent_for_ever(
    authority: TestAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even when there is none to tell the owner of an end: that is told when there is some again."""
    say, left = MqttBus._report_down, [3]

    def starved(self: MqttBus, reason: str) -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise MemoryError
        say(self, reason)

    monkeypatch.setattr(MqttBus, "_report_down", starved)
    monkeypatch.setattr("regatta_protocol.mqtt.bus._NO_MEMORY_S", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = int(nobody.getsockname()[1])
    inbox: queue.Queue[Event] = queue.Queue(10)
    bus = MqttBus(config_for(authority, port), inbox)
    bus.start()
    try:
        assert isinstance(inbox.get(timeout=15), Disconnected)
    finally:
        bus.stop()
    assert left[0] < 0


def test_connected_is_told_before_anything_else(meet: Meet) -> None:
    """Messages that the broker sends right behind its CONNACK wait for Connected."""

    def behave(connection: ssl.SSLSocket) -> None:
        connection.sendall(CONNACK + publish_packet(b"early"))
        subscribe = connection.recv(4096)
        connection.sendall(b"\x90\x03" + subscribe[2:4] + b"\x01")
        linger(connection)

    _, inbox, _ = meet(behave, filters=("rg/b/#",))

    assert [type(inbox.get(timeout=10)) for _ in range(2)] == [Connected, Message]


def test_a_connection_that_ended_is_freed_at_once(meet: Meet) -> None:
    """With its TLS, 30 KB: a device whose network comes and goes does not wait for a collection of old garbage."""
    _, _, rogue = meet(lambda connection: connection.sendall(CONNACK))  # and closes
    gc.collect()
    gc.disable()
    try:
        before, more = clients(), rogue.connections + 10
        wait_until(lambda: rogue.connections >= more)
        after = clients()
    finally:
        gc.enable()

    assert after <= before + 1  # between two connections there is none, and each was one more


def clients() -> int:
    return sum(isinstance(one, paho.Client) for one in gc.get_objects())


def wait_until(condition: Callable[[], bool], timeout_s: float = 15.0) -> None:
    ticks = threading.Event()
    for _ in range(int(timeout_s / 0.01)):
        if condition():
            return
        ticks.wait(0.01)
    raise AssertionError("it did not happen in time")
