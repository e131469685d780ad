"""A fleet's server as a process of its own, and a device by hand that enrols with it and speaks MQTT."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from regatta_fleet.home import ServerInfo, read_server_info
from regatta_protocol.bus import Message
from regatta_protocol.codec import decode, encode
from regatta_protocol.messages import (
    Assignment,
    InstallState,
    ModelReport,
    Reported,
    SignedAssignment,
)
from regatta_protocol.mqtt import MqttBus, MqttConfig
from regatta_protocol.topics import Up, device_filters, up
from regatta_protocol.values import Accuracy
from regatta_provisioning.assignments import verify_assignment
from regatta_provisioning.certificates import fingerprint_of
from regatta_provisioning.enrollment import EnrollResponse
from regatta_provisioning.tokens import parse_token

__all__ = ["DEADLINE_S", "MAIN", "Device", "ServerProcess"]

DEADLINE_S = 30.0
MAIN = """
import logging, sys
from pathlib import Path
from regatta_fleet.server import run_server
from regatta_fleet.settings import Settings
logging.basicConfig(level=logging.INFO, stream=sys.stderr)
run_server(Settings(home=Path(sys.argv[1])), lambda info: print("ready", flush=True))
"""


class ServerProcess:
    """The process, and calls to its operator API."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.process: subprocess.Popen[str] | None = None

    def launch(self) -> subprocess.Popen[str]:
        """Start it and return at once."""
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        with (self.home.parent / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", MAIN, str(self.home)],
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                text=True,
            )
        return self.process

    def start(self) -> ServerInfo:
        """Start it and return when it says ready."""
        process = self.launch()
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line == "ready\n", (self.home.parent / "server.log").read_text()[-3000:]
        info = read_server_info(self.home)
        assert info is not None
        return info

    def end(self, number: signal.Signals) -> int:
        """Send a signal and return the exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        assert self.process.stdout is not None
        status = self.process.wait(DEADLINE_S)
        self.process.stdout.close()
        return status

    def call(self, method: str, path: str, body: bytes | None = None) -> Any:  # JSON
        """Return the JSON of an answer of the operator API."""
        info = read_server_info(self.home)
        assert info is not None
        request = urllib.request.Request(
            info.url + path, data=body, method=method, headers={"Authorization": f"Bearer {info.token}"}
        )
        if body is not None:
            request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as err:
            with err:
                raise AssertionError(f"{method} {path}: {err.code} {err.read()!r}") from None


class Device:
    """A device by hand: its key, what it pinned, and its folder."""

    def __init__(self, folder: Path, token: str) -> None:
        parsed = parse_token(token)
        folder.mkdir()
        key = ec.generate_private_key(ec.SECP256R1())
        key_pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
        unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        unverified.check_hostname = False
        unverified.verify_mode = ssl.CERT_NONE
        with urllib.request.urlopen(f"{parsed.api_url}/api/v1/ca", timeout=DEADLINE_S, context=unverified) as answer:
            ca_pem = answer.read().decode()
        assert fingerprint_of(ca_pem) == parsed.ca_fingerprint
        verified = ssl.create_default_context(cadata=ca_pem)
        body = json.dumps(
            {
                "secret": parsed.secret,
                "csr_pem": csr.public_bytes(serialization.Encoding.PEM).decode(),
                "board": {"model": "Scripted"},
            }
        )
        self.enrolled = [self._enroll(parsed.api_url, body, verified) for _ in range(2)]  # the answer may get lost
        self.identity = self.enrolled[0]
        self.id = self.identity.device
        for name, data in (("key.pem", key_pem.decode()), ("cert.pem", self.identity.certificate_pem)):
            (folder / name).write_text(data)
        (folder / "ca.pem").write_text(self.identity.ca_pem)
        self.config = MqttConfig(
            host=self.identity.broker_host,
            port=self.identity.broker_port,
            client_id=self.id,
            ca_path=folder / "ca.pem",
            cert_path=folder / "cert.pem",
            key_path=folder / "key.pem",
            filters=device_filters(self.id),
            reconnect_base_s=0.05,
            reconnect_cap_s=0.5,
        )

    def _enroll(self, url: str, body: str, context: ssl.SSLContext) -> EnrollResponse:
        request = urllib.request.Request(
            f"{url}/api/v1/enroll", data=body.encode(), headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=DEADLINE_S, context=context) as answer:
            return decode(EnrollResponse, answer.read(), 200_000)

    def assignment(self, message: Message) -> Assignment:
        """Return what the message assigns, verified as a device does."""
        pinned = self.identity
        signed = decode(SignedAssignment, message.payload)
        return verify_assignment(signed, pinned.assignment_key, pinned.assignment_key_id, pinned.fleet, self.id)

    def report(self, bus: MqttBus, assignment: Assignment, sequence: int) -> None:
        """Say that all that is assigned is committed."""
        models = tuple(
            ModelReport(
                name=name,
                version=each.version,
                state=InstallState.COMMITTED,
                serving=True,
                rollout=each.rollout,
                accuracy=Accuracy(correct=98, total=100),
            )
            for name, each in assignment.models.items()
        )
        reported = Reported(
            device=self.id,
            generation=assignment.generation,
            sequence=sequence,
            agent_version="0",
            boot="b",
            models=models,
        )
        bus.publish(up(self.id, Up.REPORTED), encode(reported))
