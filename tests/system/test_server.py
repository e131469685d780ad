"""The real server as a process, with the real Mosquitto: a scripted device enrols, is told, asks and gets; the server
is killed and comes back; a revoked device stays out."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fleet_parts import DIGITS, make_variant, reference
from mosquitto import connected, require_mosquitto
from processes import children_of
from regatta_fleet.home import read_server_info
from regatta_fleet.schemas import BundleDraft
from regatta_protocol.bus import Connected, Event, Message
from regatta_protocol.chunk import unpack_chunk
from regatta_protocol.codec import decode_zlib, encode
from regatta_protocol.errors import Rejected
from regatta_protocol.ids import digest_of_bytes
from regatta_protocol.manifest import Manifest, target_path
from regatta_protocol.measurement import BoardFacts
from regatta_protocol.messages import Get, Presence, Request, Response
from regatta_protocol.mqtt import MqttBus, MqttConfig
from regatta_protocol.topics import Up, device_filters, up
from regatta_provisioning.certificates import serial_of
from regatta_provisioning.enroll import enroll
from regatta_provisioning.renewal import renew, validity_of
from server_process import DEADLINE_S, MAIN, Device, ServerProcess

pytestmark = pytest.mark.system

MODEL = bytes(range(256)) * 300  # 76,800 bytes: five chunks of 16 KiB


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    require_mosquitto()
    server = ServerProcess(tmp_path / "home")
    server.start()
    yield server
    if server.process is not None and server.process.poll() is None:
        server.end(signal.SIGTERM)


def _await(inbox: queue.Queue[Event], wanted: Callable[[Message], bool]) -> Message:
    """Return the next message that is wanted."""
    deadline = time.monotonic() + DEADLINE_S
    while (left := deadline - time.monotonic()) > 0:
        try:
            event = inbox.get(timeout=left)
        except queue.Empty:
            break
        if isinstance(event, Message) and wanted(event):
            return event
    raise AssertionError("the message did not come")


def _poll(check: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    pause = queue.Queue[None]()
    while not check():
        assert time.monotonic() < deadline, f"not in time: {what}"
        try:
            pause.get(timeout=0.05)
        except queue.Empty:
            continue


def _push(server: ServerProcess) -> Manifest:
    for content in (MODEL, b"golden"):
        server.call("PUT", f"/api/v1/blobs/{digest_of_bytes(content)}", content)
    draft = BundleDraft(variants=(make_variant(content=MODEL),), golden=reference(b"golden"))
    return Manifest.model_validate(server.call("POST", "/api/v1/models/digits/versions", encode(draft)))


def _token(server: ServerProcess) -> str:
    return str(server.call("POST", "/api/v1/tokens", b'{"device": "pi-1"}')["token"])


def test_a_device_enrols_and_gets_what_it_is_assigned(server: ServerProcess, tmp_path: Path) -> None:
    """Token over HTTPS, signed assignment, signed metadata and the model's chunks over MQTT; the rollout completes.
    The lost answer of an enrolment can be asked for again."""
    device = Device(tmp_path / "device", _token(server))
    manifest = _push(server)
    assert device.enrolled[0] == device.enrolled[1]

    with connected(device.config) as (bus, inbox):
        bus.publish(up(device.id, Up.STATE), encode(Presence(up=True, boot="b")), retain=True)
        rollout = server.call("POST", "/api/v1/rollouts", b'{"model": "digits", "version": 1}')
        message = _await(
            inbox, lambda each: each.topic.endswith("/dn/desired") and bool(device.assignment(each).models)
        )
        assignment = device.assignment(message)
        assert assignment.models[DIGITS].rollout == rollout["id"]

        target = target_path(manifest.ref)
        request = Request(id="1", method="metadata", params={"target": target, "root_version": 1})
        bus.publish(up(device.id, Up.REQUEST), encode(request))
        answer = decode_zlib(Response, _await(inbox, lambda each: each.topic.endswith("/dn/response")).payload)
        assert answer.files is not None
        assert "timestamp.json" in answer.files

        get = Get(transfer=7, digest=manifest.variants[0].file.digest, chunk_bytes=16_384, ranges=((0, 5),))
        bus.publish(up(device.id, Up.GET), encode(get))
        chunks: dict[int, bytes] = {}
        while len(chunks) < 5:
            chunk = unpack_chunk(_await(inbox, lambda each: "/dn/chunk/7" in each.topic).payload)
            chunks[chunk.index] = chunk.payload
        assert b"".join(chunks[index] for index in range(5)) == MODEL

        device.report(bus, assignment, 1)
        _poll(
            lambda: bool(server.call("GET", f"/api/v1/rollouts/{rollout['id']}")["state"] == "completed"),
            "the rollout completes",
        )
    status = server.call("GET", "/api/v1/status")
    (shown,) = status["devices"]
    assert status["broker_up"]
    assert (shown["id"], shown["board"]["model"], shown["models"][0]["serving"]) == ("pi-1", "Scripted", True)


def test_a_killed_server_comes_back_to_the_same_place(server: ServerProcess, tmp_path: Path) -> None:
    """Same ports, same token, same keys, same generation; the old broker is gone, and the rollout goes on where it
    was."""
    device = Device(tmp_path / "device", _token(server))
    _push(server)
    before = read_server_info(server.home)
    rollout = server.call("POST", "/api/v1/rollouts", b'{"model": "digits", "version": 1}')
    with connected(device.config) as (bus, inbox):
        wanted = _await(inbox, lambda each: each.topic.endswith("/dn/desired") and b"digits" in each.payload)

        assert server.end(signal.SIGKILL) == -signal.SIGKILL
        assert (server.home / "server.json").exists()
        assert read_server_info(server.home) is None  # of a process that is gone
        after = server.start()

        again = _await(inbox, lambda each: each.topic.endswith("/dn/desired") and b"digits" in each.payload)
        assert again.payload == wanted.payload
        device.report(bus, device.assignment(again), 1)
        _poll(
            lambda: bool(server.call("GET", f"/api/v1/rollouts/{rollout['id']}")["state"] == "completed"),
            "the rollout completes after the restart",
        )
    assert before is not None
    assert after.model_copy(update={"pid": before.pid}) == before
    assert server.end(signal.SIGTERM) == 0
    assert not (server.home / "server.json").exists()


def test_a_first_start_that_is_killed_anywhere_is_finished_by_the_next(tmp_path: Path) -> None:
    """Whatever was half made when it died: the fleet gets one id and its keys, and keeps them."""
    require_mosquitto()
    server = ServerProcess(tmp_path / "home")
    fleets = set()
    for half in (
        "fleet.json",
        "authority/ca-key.pem",
        "authority/ca.pem",
        "fleet.sqlite",
        "broker/crl.pem",
        "broker/mosquitto.conf",
        "metadata/keys",
        "keys/assignment.pem",
        "metadata/metadata/timestamp.json",
        "server.json",
    ):
        process = server.launch()
        while not (server.home / half).exists() and process.poll() is None:
            time.sleep(0.001)  # a kill needs no better moment
        assert server.end(signal.SIGKILL) == -signal.SIGKILL, (tmp_path / "server.log").read_text()[-2000:]
        fleets.add(json.loads((server.home / "fleet.json").read_text())["fleet"])
    fleets.add(server.start().fleet)
    ca = (server.home / "authority/ca.pem").read_bytes()
    assert server.call("GET", "/api/v1/status")["fleet"] in fleets
    assert server.end(signal.SIGTERM) == 0

    assert len(fleets) == 1
    assert (server.home / "authority/ca.pem").read_bytes() == ca


def test_a_killed_broker_comes_back_and_nothing_is_forgotten(server: ServerProcess, tmp_path: Path) -> None:
    """The server starts it again and says again what every device shall run."""
    device = Device(tmp_path / "device", _token(server))
    _push(server)
    server.call("POST", "/api/v1/rollouts", b'{"model": "digits", "version": 1}')
    with connected(device.config) as (_bus, inbox):
        _await(inbox, lambda each: b"digits" in each.payload)
        assert server.process is not None
        pids = children_of(server.process.pid)
        (broker,) = [pid for pid in pids if b"mosquitto" in Path(f"/proc/{pid}/cmdline").read_bytes()]

        os.kill(broker, signal.SIGKILL)

        _await(inbox, lambda each: b"digits" in each.payload)
    _poll(lambda: bool(server.call("GET", "/api/v1/status")["broker_up"]), "the server is connected again")


def _gets_in(config: MqttConfig) -> bool:
    """Say whether a fresh connection is accepted, or else refused."""
    inbox: queue.Queue[Event] = queue.Queue(100)
    bus = MqttBus(config, inbox)
    bus.start()
    try:
        return isinstance(inbox.get(timeout=DEADLINE_S), Connected)
    finally:
        bus.stop()


def test_a_revoked_device_stays_out(server: ServerProcess, tmp_path: Path) -> None:
    """Its connection is cut, it cannot connect again, and the fleet shows it as revoked."""
    device = Device(tmp_path / "device", _token(server))
    inbox: queue.Queue[Event] = queue.Queue(100)
    bus = MqttBus(device.config, inbox)
    bus.start()
    try:
        assert isinstance(inbox.get(timeout=DEADLINE_S), Connected)
        server.call("DELETE", f"/api/v1/devices/{device.id}")
        while type(inbox.get(timeout=DEADLINE_S)).__name__ != "Disconnected":
            pass
    finally:
        bus.stop()
    assert not any(_gets_in(device.config) for _ in range(5))
    assert server.call("GET", f"/api/v1/devices/{device.id}")["revoked"]


def test_a_device_renews_its_certificate_until_it_is_revoked(server: ServerProcess, tmp_path: Path) -> None:
    """By the real server: the next certificate opens the broker, a renewal that is not due asks nobody."""
    folder = tmp_path / "identity"
    identity = enroll(_token(server), folder, device=None, board=BoardFacts(), timeout_s=DEADLINE_S)
    before = identity.certificate_path.read_text()

    assert renew(folder, now=time.time()) is None
    begins = validity_of(before.encode()).begins
    assert renew(folder, now=begins - 3.2e8, timeout_s=DEADLINE_S), "one of a server whose clock was ten years ahead"
    renewed = renew(folder, now=time.time() + 80 * 86_400, timeout_s=DEADLINE_S)

    after = identity.certificate_path.read_text()
    assert renewed is not None and not renewed.is_due(time.time())
    assert serial_of(after) != serial_of(before)
    config = MqttConfig(
        host=identity.broker_host,
        port=identity.broker_port,
        client_id=identity.device,
        ca_path=identity.ca_path,
        cert_path=identity.certificate_path,
        key_path=identity.key_path,
        filters=device_filters(identity.device),
    )
    with connected(config):
        pass
    server.call("DELETE", f"/api/v1/devices/{identity.device}")
    with pytest.raises(Rejected, match="revoked"):
        renew(folder, now=time.time(), force=True, timeout_s=DEADLINE_S)
    assert identity.certificate_path.read_text() == after


def test_two_servers_do_not_run_one_home(server: ServerProcess) -> None:
    """The second one says so and leaves the first alone."""
    second = subprocess.run(
        [sys.executable, "-c", MAIN, str(server.home)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )

    assert second.returncode != 0
    assert "a server of this fleet runs already" in second.stderr
    assert server.call("GET", "/api/v1/status")["fleet"]
