"""A device and its fleet over the real broker, through a network that breaks in every way that networks do.

Whatever happens: the model that serves goes on, all ends as the fleet wishes, no attempt is held against a version, a
download costs few more bytes than the file (_MOST), and nothing arrives twice under two ids.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest

from device_rig import MODEL
from enrolling_server import EnrollingServer
from fault_proxy import CAPTIVE_PORTAL, CLEAR, FaultProxy, Weather, fault_proxy
from live_rig import LiveRig
from mosquitto import Wire, running_wire
from regatta_agent.serving.events import WindowClosed
from regatta_protocol import topics
from regatta_protocol.codec import encode
from regatta_protocol.errors import Retryable
from regatta_protocol.ids import DeviceId
from regatta_protocol.measurement import BoardFacts
from regatta_protocol.messages import Get, SignedAssignment
from regatta_protocol.mqtt import MqttConfig
from regatta_protocol.mqtt.settings import tls_context
from regatta_protocol.plain import to_json
from regatta_protocol.values import ServingWindow
from regatta_provisioning.enroll import enroll

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

_BIG_BYTES = 3_000_000
# 5 % with a clock that is moved by hand (scenario/test_update_link.py); a busy machine's pauses look like lost chunks.
_MOST = 1.10
_HELLO_BYTES = 5_000  # of each connection: the handshake of TLS, CONNACK, what is retained
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    with running_wire(tmp_path_factory.mktemp("w")) as wire:
        yield wire


@pytest.fixture
def proxy(wire: Wire) -> Iterator[FaultProxy]:
    with fault_proxy(wire.broker.port, seed=7) as proxy:
        yield proxy


@pytest.fixture
def rig(tmp_path: Path, wire: Wire, proxy: FaultProxy) -> Iterator[LiveRig]:
    """A device that serves version 1 and may be given version 2, of 3 MB."""
    rig = LiveRig(tmp_path, wire, proxy, DeviceId(f"pi-{next(_numbers)}"), backoff_base_s=0.1)
    rig.start()
    rig.fleet.push(1)
    rig.fleet.push(2, _BIG_BYTES)
    rig.fleet.assign(1, trial_s=0.1)
    assert rig.live(rig.committed(1)), rig.install(1)
    yield rig
    rig.stop()


def serving(rig: LiveRig, ends: Callable[[], bool]) -> Callable[[], bool]:
    """Return a probe of `ends` that also demands at each look that a live worker is behind the socket."""

    def probe() -> bool:
        assert rig.serves()
        return ends()

    return probe


def update(rig: LiveRig) -> None:
    """Give version 2, and see it arrive without an attempt or many extra bytes."""
    before, connections = rig.proxy.bytes["down"], rig.proxy.connections
    rig.fleet.assign(2, "r2", trial_s=0.1)
    assert rig.live(serving(rig, rig.committed(2))), rig.install(2)

    spent = rig.proxy.bytes["down"] - before - _HELLO_BYTES * (rig.proxy.connections - connections + 1)
    assert spent <= _MOST * _BIG_BYTES, f"{spent} bytes for {_BIG_BYTES}"
    assert rig.install(2).attempt == 0


@pytest.mark.parametrize(
    ("weather", "cuts"),
    [
        (Weather(cut_down_bytes=600_000, bytes_per_s=3e6), 4),
        (Weather(cut_up_bytes=12_000, bytes_per_s=3e6), 1),
        (Weather(cut_down_bytes=1_500_000, bytes_per_s=2e6, delay_s=0.005), 1),
    ],
    ids=["cut down", "cut up", "slow and cut"],
)
def test_a_link_that_is_cut_delayed_and_throttled_only_delays(rig: LiveRig, weather: Weather, cuts: int) -> None:
    """Records of TLS are torn in the middle, and the download goes on where it was."""
    before = rig.proxy.connections
    rig.proxy.weather = weather
    update(rig)

    assert rig.proxy.connections - before >= cuts


def test_ten_minutes_of_silence_are_noticed_and_gone_on_after(rig: LiveRig) -> None:
    """No connection is closed, and nothing passes: the keepalive ends it, the model serves, windows are told later."""
    rig.proxy.weather = Weather(bytes_per_s=3e6)
    rig.fleet.assign(2, "r2", trial_s=0.1)
    assert rig.live(lambda: rig.state(2) == "downloading" and rig.proxy.bytes["down"] > 600_000)
    before = rig.proxy.bytes["down"]
    rig.proxy.weather = Weather(silent=True)
    assert rig.live(serving(rig, lambda: not rig.loop.online))
    windows = 0
    for _ in range(10):
        rig.let_pass(60)
        for child in rig.launcher.alive("worker:digits-1-"):
            windows += 1
            at = float(windows)
            child.say(
                to_json(WindowClosed(model=MODEL, version=1, placement="p", start=at, stop=at, requests=1, errors=0))
            )
        assert rig.serves()
    assert rig.install(2).reason == "offline: it goes on when the broker can be reached"

    rig.proxy.weather = CLEAR
    assert rig.live(serving(rig, rig.committed(2))), rig.install(2)
    assert rig.install(2).attempt == 0
    assert rig.proxy.bytes["down"] - before <= _MOST * _BIG_BYTES

    def told() -> int:
        """What was served, as the server counts it: each batch once, whose windows may have been merged."""
        batches = {batch.id: batch for batch in rig.fleet.batches}
        items = [item for batch in batches.values() for item in batch.items]
        return sum(item.requests for item in items if isinstance(item, ServingWindow))

    assert rig.live(lambda: told() >= windows), told()
    assert told() == windows


def test_a_broker_that_is_killed_again_and_again_only_delays(rig: LiveRig, wire: Wire) -> None:
    """kill -9 in the middle of a download, twice: queued commands are lost, and said again by the server."""
    before, connections = rig.proxy.bytes["down"], rig.proxy.connections
    rig.proxy.weather = Weather(bytes_per_s=3e6)
    rig.fleet.assign(2, "r2", trial_s=0.1)
    for part in (1, 2):
        due = before + part * _BIG_BYTES // 4
        assert rig.live(serving(rig, lambda due=due: rig.proxy.bytes["down"] > due)), rig.install(2)  # type: ignore[misc]
        pid = wire.broker.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert rig.live(serving(rig, lambda: not rig.loop.online))
    assert rig.live(serving(rig, rig.committed(2))), rig.install(2)

    spent = rig.proxy.bytes["down"] - before - _HELLO_BYTES * (rig.proxy.connections - connections)
    assert spent <= _MOST * _BIG_BYTES
    assert rig.install(2).attempt == 0


@pytest.mark.parametrize("weather", [Weather(portal=CAPTIVE_PORTAL), Weather(refuse=True)], ids=["portal", "refused"])
def test_a_captive_portal_is_named_and_waited_out(
    rig: LiveRig, weather: Weather, caplog: pytest.LogCaptureFixture
) -> None:
    """HTML in place of TLS: offline with the reason, told a few times and not at each try, and over when it is over."""
    rig.proxy.weather = weather
    before = rig.proxy.connections
    rig.proxy.cut()
    rig.fleet.assign(2, "r2", trial_s=0.1)
    caplog.clear()
    assert rig.live(serving(rig, lambda: rig.proxy.connections > before + 5))
    offline = rig.loop._offline or ""

    assert not rig.loop.online
    assert ("captive portal" in offline) is (weather.portal is not None), offline
    assert len([line for line in caplog.messages if "event=mqtt_disconnected" in line]) <= 5
    rig.proxy.weather = CLEAR
    assert rig.live(serving(rig, rig.committed(2))), rig.install(2)


def test_enrolment_through_a_captive_portal_says_so_and_works_afterwards(tmp_path: Path) -> None:
    """The token is not used up; a partition ends with the time limit; the same command goes on."""
    server = EnrollingServer(tmp_path / "fleet")
    try:
        with fault_proxy(server.port) as proxy:
            token = server.token(port=proxy.port)

            def try_it(timeout_s: float) -> None:
                enroll(token, tmp_path / "identity", device=DeviceId("pi"), board=BoardFacts(), timeout_s=timeout_s)

            proxy.weather = Weather(portal=CAPTIVE_PORTAL)
            with pytest.raises(Retryable, match="captive portal"):
                try_it(10)
            proxy.weather = Weather(silent=True)
            with pytest.raises(Retryable, match="no answer from"):
                try_it(0.5)
            proxy.weather = Weather(cut_down_bytes=900)
            with pytest.raises(Retryable, match="no answer from"):
                try_it(10)
            proxy.weather = CLEAR
            try_it(10)
    finally:
        server.stop()
    assert (tmp_path / "identity" / "identity.json").exists()


def test_lost_cut_doubled_reordered_and_replayed_messages_do_no_harm(rig: LiveRig) -> None:
    """Every message twice and once cut short, chunks lost and in any order, the first assignment again and again."""
    first, say, send, chance = rig.fleet.wish, rig.fleet.say, rig.fleet._send, random.Random(3)  # type: ignore[attr-defined]
    assert isinstance(first, SignedAssignment)
    held: list[tuple[str, bytes]] = []

    def mess(topic: str, payload: bytes, *, qos: Literal[0, 1] = 1, retain: bool = False) -> None:
        if "/chunk/" in topic:
            held.append((topic, payload))
            return
        say(topic, payload[: len(payload) // 2], qos=qos)
        for _ in range(2):
            say(topic, payload, qos=qos, retain=retain)
        say(topics.desired(rig.device), encode(first), retain=False)

    def send_in_any_order(get: Get) -> None:
        send(get)
        chance.shuffle(held)
        for topic, payload in (*held, held[0]):
            if chance.random() < 0.1:
                continue
            if chance.random() < 0.1:
                say(topic, payload[: chance.randrange(len(payload))], qos=0)
            say(topic, payload, qos=0)
        held.clear()

    rig.fleet._send = send_in_any_order  # type: ignore[method-assign]
    rig.fleet.say = mess  # type: ignore[method-assign]
    rig.fleet.assign(2, "r2", trial_s=0.1)
    assert rig.live(serving(rig, rig.committed(2))), rig.install(2)
    assert rig.live(lambda: rig.loop._parts.desired.refused is not None)

    assert rig.loop.record.generation == 2
    assert "older generation" in (rig.loop._parts.desired.refused or "")
    rig.fleet.say = say  # type: ignore[method-assign]
    rig.fleet.assign(2, "r2", trial_s=0.1)
    assert rig.live(lambda: rig.loop.record.generation == 3 and rig.loop._parts.desired.refused is None)


@pytest.mark.parametrize(
    "payload",
    [
        b"\xff\xfe\x00 no text",
        b"x" * 200_000,
        b'{"payload":"{}","key_id":"k","signature":"forged"}',
        b'{"schema_version":7,"wish":"of another shape"}',
    ],
    ids=["undecodable", "oversize", "wrong signature", "newer schema"],
)
def test_a_poison_message_that_is_retained_comes_back_at_every_connection_and_changes_nothing(
    rig: LiveRig, wire: Wire, payload: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused each time at the cost of a log line; the next true message is taken up."""
    monkeypatch.setattr("regatta_protocol.outgoing.MAX_PAYLOAD_BYTES", 250_000)
    rig.fleet.say(topics.desired(rig.device), payload, retain=True)
    rig.fleet.say(topics.response(rig.device), payload)
    rig.fleet.say(topics.chunk(rig.device, 9), payload, qos=0)
    for _ in range(3):
        before = rig.proxy.connections
        rig.proxy.cut()
        assert rig.live(serving(rig, lambda before=before: rig.loop.online and rig.proxy.connections > before))  # type: ignore[misc]
    rig.fleet.push(3)
    rig.fleet.assign(3, "r3", trial_s=0.1)

    assert rig.live(serving(rig, rig.committed(3))), rig.install(3)


def test_the_proxy_is_as_bad_as_it_says(proxy: FaultProxy) -> None:
    """The tests above mean something: the same seed cuts at the same byte, and silence is told to nobody."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        fault_proxy(server.getsockname()[1], seed=1) as one,
        fault_proxy(server.getsockname()[1], seed=1) as two,
    ):
        passed = []
        for each in (one, two):
            each.weather = Weather(cut_up_bytes=10_000)
            with socket.create_connection(("127.0.0.1", each.port), timeout=5) as client:
                client.sendall(b"a" * 9_999)
                far, _ = server.accept()
                far.settimeout(5)
                count = 0
                while piece := far.recv(65_536):
                    count += len(piece)
                passed.append(count)
        assert passed[0] == passed[1] == one.bytes["up"]
        assert 5_000 <= passed[0] < 9_999

        one.weather = Weather(silent=True)
        with socket.create_connection(("127.0.0.1", one.port), timeout=5) as client:
            client.settimeout(0.2)
            client.sendall(b"anybody?")
            with pytest.raises(TimeoutError):
                client.recv(1)


def test_a_board_out_of_memory_for_a_connection_tries_again(rig: LiveRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever Python raises on the network's thread, the thread goes on: offline for ever would be silent."""
    context, failures = tls_context, itertools.count(1)

    def no_memory(config: MqttConfig) -> object:
        if next(failures) <= 2 and config.client_id == rig.device:
            raise MemoryError
        return context(config)

    monkeypatch.setattr("regatta_protocol.mqtt.connection.tls_context", no_memory)
    rig.proxy.cut()

    assert rig.live(lambda: not rig.loop.online)
    assert rig.live(serving(rig, lambda: rig.loop.online))
