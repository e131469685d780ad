"""The private broker: a real Mosquitto, started, killed, reloaded, and asked for what it must refuse."""

from __future__ import annotations

import os
import queue
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mosquitto import TestAuthority, Wire, connected, expect, require_mosquitto, running_wire
from regatta_fleet.broker import Broker, mosquitto_settings
from regatta_protocol.bus import Connected, Disconnected, Event, Message, Published
from regatta_protocol.errors import Misuse, Retryable
from regatta_protocol.mqtt import MqttBus

pytestmark = pytest.mark.system
SERVER = "regatta-server"


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    with running_wire(tmp_path) as running:
        yield running


def test_it_starts_on_a_free_port_and_stops(wire: Wire) -> None:
    """The child runs while it is started, and after stop() neither process nor listener is left."""
    pid, port = wire.broker.pid, wire.broker.port
    assert pid is not None and wire.broker.alive()

    wire.broker.stop()
    wire.broker.stop()

    assert wire.broker.pid is None and not wire.broker.alive()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_a_killed_broker_comes_back_on_its_port(tmp_path: Path) -> None:
    """`on_restart` hears why, and clients find it again by themselves."""
    require_mosquitto()
    wire = Wire(tmp_path)
    reasons: queue.Queue[str] = queue.Queue()
    wire.broker = Broker(wire.config, reasons.put)
    wire.broker.start()
    try:
        with connected(wire.mqtt_config("dev-1")) as (_, inbox):
            pid, port = wire.broker.pid, wire.broker.port
            assert pid is not None
            os.kill(pid, signal.SIGKILL)

            expect(inbox, Disconnected)
            expect(inbox, Connected)
            assert "signal 9" in reasons.get(timeout=10)
            assert wire.broker.port == port and wire.broker.pid not in (pid, None)
    finally:
        wire.broker.stop()


def test_retained_state_survives_a_restart(wire: Wire) -> None:
    """stop() lets the broker save what it holds."""
    with connected(wire.mqtt_config(SERVER)) as (server, inbox):
        server.publish("rg/d/dev-1/dn/desired", b"wanted", retain=True)
        expect(inbox, Published)

    wire.broker.stop()
    wire.broker.start()

    with connected(wire.mqtt_config("dev-1", ("rg/d/dev-1/dn/desired",))) as (_, inbox):
        assert expect(inbox, Message) == Message("rg/d/dev-1/dn/desired", b"wanted", retained=True)


def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    """Even when the server is killed without a chance to clean up."""
    require_mosquitto()
    program = (
        "import sys, pathlib, mosquitto, time\n"
        "wire = mosquitto.Wire(pathlib.Path(sys.argv[1])); wire.broker.start()\n"
        "print(wire.broker.pid, flush=True); sys.stdin.read()\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    with parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.kill(pid, 0)

        parent.kill()

    wait_until(lambda: not _runs(pid))


@pytest.mark.skipif(os.geteuid() != 0, reason="changing the user needs root")
def test_it_runs_as_an_ordinary_user(tmp_path: Path) -> None:
    """Without root nothing is different: own folder, own key with mode 0600."""
    require_mosquitto()
    readable = tmp_path / "home"
    readable.mkdir()
    for folder in (readable, *[parent for parent in readable.parents if str(parent).startswith("/tmp/")]):
        folder.chmod(folder.stat().st_mode | 0o055)
    os.chown(readable, 65534, 65534)
    program = (
        # What is imported late comes first: the interpreter may live where this user cannot read.
        "import sys, os, pathlib, tempfile, encodings.idna, mosquitto\n"
        "with tempfile.TemporaryDirectory() as scratch:\n"
        "    mosquitto.TestAuthority(pathlib.Path(scratch)).issue('warm-up')\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "wire = mosquitto.Wire(pathlib.Path(sys.argv[1])); wire.broker.start()\n"
        "assert 'user root' not in (wire.config.folder / 'mosquitto.conf').read_text()\n"
        "with mosquitto.connected(wire.mqtt_config('dev-1')): print('connected as', os.getuid())\n"
        "wire.broker.stop()\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "HOME": "/"}
    result = subprocess.run(
        [sys.executable, "-c", program, str(readable)],
        capture_output=True, text=True, env=environment, timeout=60, check=False,
    )  # fmt: skip

    assert result.stdout == "connected as 65534\n", result.stderr


def test_who_has_no_certificate_of_the_fleet_gets_no_session(wire: Wire, tmp_path: Path) -> None:
    """Another authority's certificate, an expired one, and none at all."""
    stranger = TestAuthority(tmp_path / "stranger")
    key_path, cert_path = stranger.issue("dev-1")
    good = wire.mqtt_config("dev-1")
    old_key, old_cert = wire.authority.issue("dev-2", days=-1)

    for config in (
        replace(good, cert_path=cert_path, key_path=key_path),
        replace(good, client_id="dev-2", cert_path=old_cert, key_path=old_key),
    ):
        inbox: queue.Queue[Event] = queue.Queue(10)
        bus = MqttBus(config, inbox)
        bus.start()
        assert isinstance(inbox.get(timeout=10), Disconnected)
        bus.stop()
    assert not _gets_connack(wire)


def test_an_old_tls_is_refused(wire: Wire) -> None:
    """TLS 1.1 ends in the handshake, whatever certificate comes with it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(wire.authority.ca_path)
    with pytest.warns(DeprecationWarning):
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with (
        socket.create_connection(("127.0.0.1", wire.broker.port), timeout=5) as plain,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        context.wrap_socket(plain, server_hostname="127.0.0.1")


def test_a_client_id_cannot_be_taken_from_another(wire: Wire) -> None:
    """Who connects with another's client id gets his own, so he evicts nobody and hears nothing of the other."""
    wire.authority.issue("dev-2")
    thief = replace(wire.mqtt_config("dev-2", ("rg/d/dev-1/dn/#", "rg/d/dev-2/dn/#")), client_id="dev-1")
    with (
        connected(wire.mqtt_config("dev-1", ("rg/d/dev-1/dn/#",))) as (_, inbox),
        connected(thief) as (_, stolen),
        connected(wire.mqtt_config(SERVER)) as (server, _),
    ):
        server.publish("rg/d/dev-1/dn/response", b"secret")
        server.publish("rg/d/dev-2/dn/response", b"own")

        assert expect(inbox, Message).payload == b"secret"
        assert expect(stolen, Message).payload == b"own"


def test_a_revoked_device_cannot_connect_after_reload(wire: Wire) -> None:
    """reload() takes the new revocation list up without cutting the others."""
    with connected(wire.mqtt_config("dev-2", ("rg/d/dev-2/dn/#",))) as (_, other):
        with connected(wire.mqtt_config("dev-1")):
            pass
        wire.authority.revoke(wire.authority.folder / "dev-1.pem")
        pid = wire.broker.pid
        wire.broker.reload()

        wait_until(lambda: not _connects(wire, "dev-1"))
        assert _connects(wire, "dev-3")
        assert wire.broker.pid == pid
        assert not any(isinstance(event, Disconnected) for event in other.queue)


def test_the_first_revocation_list_is_taken_up_too(tmp_path: Path) -> None:
    """When there was none at the start, the child is restarted with it."""
    with running_wire(tmp_path, with_crl=False) as wire:
        crl_path = tmp_path / "later.pem"
        wire.broker.stop()
        wire.broker = Broker(replace(wire.config, crl_path=crl_path, port=wire.broker.port))
        wire.broker.start()
        try:
            assert _connects(wire, "dev-1")
            wire.authority.revoke(wire.authority.folder / "dev-1.pem")
            crl_path.write_bytes(wire.authority.crl_path.read_bytes())

            wire.broker.reload()

            wait_until(lambda: not _connects(wire, "dev-1") and _connects(wire, "dev-2"))
        finally:
            wire.broker.stop()


def test_a_taken_port_is_said(wire: Wire, tmp_path: Path) -> None:
    """A stranger on the port is not taken for our broker; Mosquitto's own words are passed on."""
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = int(stranger.getsockname()[1])
        second = Broker(replace(wire.config, folder=tmp_path / "second", port=port))

        with pytest.raises(
            Misuse, match=rf"did not start on 127\.0\.0\.1:{port}; it said:(.|\n)*Address already in use"
        ):
            second.start()


def test_a_missing_file_is_said(wire: Wire, tmp_path: Path) -> None:
    """Before anything is started."""
    with pytest.raises(Misuse, match=r"none\.pem, which is not there"):
        Broker(replace(wire.config, cert_path=tmp_path / "none.pem")).start()


def test_a_missing_mosquitto_is_said(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it."""
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)

    with pytest.raises(Misuse, match="apt-get install mosquitto"):
        Broker(wire.config).start()


def test_reload_and_port_before_the_start(wire: Wire) -> None:
    """Both say what is missing."""
    fresh = Broker(wire.config)

    with pytest.raises(Retryable, match="not running"):
        fresh.reload()
    with pytest.raises(Misuse, match="no port"):
        _ = fresh.port


def test_a_path_cannot_smuggle_a_setting_in(wire: Wire) -> None:
    """A line break would begin a line of its own."""
    with pytest.raises(Misuse, match="line break"):
        mosquitto_settings(replace(wire.config, ca_path=Path("x\nallow_anonymous true")), 1, as_root=False)


def _connects(wire: Wire, name: str) -> bool:
    inbox: queue.Queue[Event] = queue.Queue(10)
    bus = MqttBus(wire.mqtt_config(name), inbox)
    bus.start()
    try:
        return isinstance(inbox.get(timeout=10), Connected)
    finally:
        bus.stop()


def _gets_connack(wire: Wire) -> bool:
    """Say whether a client without any certificate is answered."""
    context = ssl.create_default_context(cafile=str(wire.authority.ca_path))
    address = ("127.0.0.1", wire.broker.port)
    try:
        with (
            socket.create_connection(address, timeout=5) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
        ):
            connection.sendall(bytes.fromhex("100d00044d5154540402003c000161"))
            return connection.recv(4) != b""
    except OSError:
        return False


def _runs(pid: int) -> bool:
    try:
        return (
            "(mosquitto)" in Path(f"/proc/{pid}/stat").read_text()
            and " Z " not in Path(f"/proc/{pid}/stat").read_text()
        )
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], bool], timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
