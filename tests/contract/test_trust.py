"""What one side makes the other takes: certificates with a real Mosquitto, and metadata by a real verifier.

The same suite of forgeries runs in this process and in the verifier's child process.
"""

from __future__ import annotations

import shutil
import socket
import ssl
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from regatta_protocol.codec import decode
from regatta_protocol.ids import DeviceId
from regatta_provisioning.authority import Authority
from regatta_provisioning.certificates import serial_of
from regatta_provisioning.keys import write_private_key
from regatta_provisioning.verifier import verify
from regatta_provisioning.verifying import MetadataJob, VerifyResult, command
from signed_fleet import DAY, FIRST, SECOND, START, Device, SignedFleet

Verify = Callable[[MetadataJob], VerifyResult]
_DEADLINE_S = 15.0


def _in_child(job: MetadataJob) -> VerifyResult:
    done = subprocess.run(command(), input=job.model_dump_json().encode(), capture_output=True, timeout=60, check=True)
    return decode(VerifyResult, done.stdout)


@pytest.fixture(params=[verify, _in_child], ids=["in process", "child process"])
def run_job(request: pytest.FixtureRequest) -> Verify:
    run: Verify = request.param
    return run


def test_metadata_from_the_repository_are_judged_alike(run_job: Verify, tmp_path: Path) -> None:
    fleet = SignedFleet(tmp_path / "fleet")
    other = SignedFleet(tmp_path / "other")
    for one in (fleet, other):
        one.repository.add_target(FIRST, b"one")
    old = fleet.answer()
    fleet.repository.add_target(SECOND, b"two")
    new = fleet.answer()
    device = Device(tmp_path / "device").pin(fleet.repository.root_json)

    good = run_job(device.job(new))
    device.floor = good.versions
    assert good.ok
    assert [
        run_job(device.job(files, now=now)).family
        for files, now in (
            (new, START),
            (old, START),
            (other.answer(), START),
            (new, START + 30 * DAY),
            ({**new, "timestamp.json": new["timestamp.json"].replace("2026", "2036")}, START),
            ({}, START),
        )
    ] == [None, "untrusted", "untrusted", "expired", "untrusted", "retryable"]


@dataclass
class Broker:
    """A Mosquitto with mutual TLS by the fleet's authority."""

    folder: Path
    authority: Authority
    port: int
    process: subprocess.Popen[bytes]

    def reload_crl(self) -> None:
        (self.folder / "crl.pem").write_text(self.authority.crl_pem())
        self.process.send_signal(1)

    def connect(self, certificate: Path, key: Path, ca: Path | None = None) -> int:
        """Return the code of CONNACK (0 is accepted), or -1 when TLS ends without one."""
        context = ssl.create_default_context(cafile=str(ca or self.folder / "ca.pem"))
        context.load_cert_chain(certificate, key)
        packet = b"\x00\x04MQTT\x04\x02\x00\x1e" + struct.pack("!H", 0)
        try:
            with (
                socket.create_connection(("127.0.0.1", self.port), timeout=5) as raw,
                context.wrap_socket(raw, server_hostname="localhost") as secured,
            ):
                secured.sendall(b"\x10" + bytes([len(packet)]) + packet)
                answer = secured.recv(4)
                return answer[3] if len(answer) == 4 else -1
        except OSError:
            return -1


def _device(folder: Path, authority: Authority, name: str) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    pem = csr.public_bytes(serialization.Encoding.PEM).decode()
    write_private_key(folder / f"{name}-key.pem", key)
    (folder / f"{name}.pem").write_text(authority.sign_device_csr(pem, DeviceId(name)))
    return folder / f"{name}.pem", folder / f"{name}-key.pem"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
    if program is None:
        pytest.skip("the program mosquitto is not installed (apt install mosquitto)")
    authority = Authority.create(tmp_path / "authority", "lab")
    key_path, certificate_path = authority.issue_server(tmp_path / "tls", "broker", ["localhost", "127.0.0.1"])
    (tmp_path / "ca.pem").write_text(authority.ca_pem)
    (tmp_path / "crl.pem").write_text(authority.crl_pem())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    (tmp_path / "mosquitto.conf").write_text(
        f"listener {port} 127.0.0.1\nuser root\ncafile {tmp_path}/ca.pem\ncertfile {certificate_path}\n"
        f"keyfile {key_path}\ncrlfile {tmp_path}/crl.pem\nrequire_certificate true\n"
        "use_identity_as_username true\nuse_username_as_clientid true\ntls_version tlsv1.2\n"
    )
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([program, "-c", str(tmp_path / "mosquitto.conf")], stdout=log, stderr=log)
    broker = Broker(tmp_path, authority, port, process)
    try:
        client_key, client = authority.issue_client()
        _until(lambda: broker.connect(client, client_key) == 0, tmp_path / "log")
        yield broker
    finally:
        process.kill()
        process.wait(10)


def _until(condition: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"did not happen in {_DEADLINE_S} s: {log.read_text()[-2000:]}")
        time.sleep(0.02)  # between polls


@pytest.mark.system
def test_mosquitto_takes_the_fleets_certificates_and_no_others(broker: Broker, tmp_path: Path) -> None:
    stranger = Authority.create(tmp_path / "stranger", "lab")

    assert broker.connect(*_device(tmp_path, broker.authority, "pi-1")) == 0
    (tmp_path / "foreign").mkdir()
    assert broker.connect(*_device(tmp_path / "foreign", stranger, "pi-1")) == -1
    (tmp_path / "foreign" / "ca.pem").write_text(stranger.ca_pem)
    ours = _device(tmp_path, broker.authority, "pi-3")
    assert broker.connect(*ours, ca=tmp_path / "foreign" / "ca.pem") == -1, "the device refuses a foreign broker"


@pytest.mark.system
def test_mosquitto_refuses_who_was_revoked(broker: Broker, tmp_path: Path) -> None:
    first, second = (_device(tmp_path, broker.authority, name) for name in ("pi-1", "pi-2"))
    assert broker.connect(*first) == 0
    broker.authority.revoke(serial_of(first[0].read_text()))
    broker.reload_crl()

    _until(lambda: broker.connect(*first) == -1, tmp_path / "log")
    assert broker.connect(*second) == 0
