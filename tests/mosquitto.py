"""What tests with a real Mosquitto share: a throw-away certificate authority, and the broker of the fleet on it.

The fleet's own authority is not used, so that the wire can be tested without it; the certificates have the same
shape: EC P-256, the device's id as common name.
"""

from __future__ import annotations

import datetime
import ipaddress
import queue
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from regatta_fleet.broker import Broker, BrokerConfig, find_mosquitto
from regatta_protocol.bus import Connected, Event, Will
from regatta_protocol.errors import Misuse
from regatta_protocol.mqtt import MqttBus, MqttConfig

DEADLINE_S = 15.0

E = TypeVar("E")


def require_mosquitto() -> None:
    """Skip the test, with the reason, where no Mosquitto is installed."""
    try:
        find_mosquitto()
    except Misuse as err:
        pytest.skip(str(err))


class TestAuthority:
    """Issues certificates into a folder. Real ones: TLS verifies them as it would the fleet's."""

    __test__ = False

    def __init__(self, folder: Path, name: str = "test fleet") -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._revoked: list[int] = []
        certificate = (
            self._build(self._name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(
                x509.KeyUsage(False, False, False, False, False, True, True, False, False),
                critical=True,
            )
            .sign(self._key, hashes.SHA256())
        )
        self.ca_path = folder / "ca.pem"
        self.ca_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        self.crl_path = folder / "crl.pem"
        self._write_crl()

    def issue(self, name: str, hosts: tuple[str, ...] = (), *, days: float = 1.0) -> tuple[Path, Path]:
        """Return the paths of a new key (mode 0600) and its certificate; with `hosts` it is a server's."""
        key = ec.generate_private_key(ec.SECP256R1())
        usage = ExtendedKeyUsageOID.SERVER_AUTH if hosts else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = (
            self._build(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key.public_key(), days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        )
        if hosts:
            builder = builder.add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), False)
        certificate = builder.sign(self._key, hashes.SHA256())
        key_path, cert_path = self.folder / f"{name}.key", self.folder / f"{name}.pem"
        key_path.touch(mode=0o600)
        key_path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        cert_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return key_path, cert_path

    def revoke(self, cert_path: Path) -> None:
        """Put the certificate on the revocation list."""
        self._revoked.append(x509.load_pem_x509_certificate(cert_path.read_bytes()).serial_number)
        self._write_crl()

    def _build(self, subject: x509.Name, key: ec.EllipticCurvePublicKey, days: float = 1.0) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.timezone.utc)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=2))
            .not_valid_after(now + datetime.timedelta(days=days))
        )

    def _write_crl(self) -> None:
        now = datetime.datetime.now(datetime.timezone.utc)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._name)
            .last_update(now - datetime.timedelta(hours=1))
            .next_update(now + datetime.timedelta(days=1))
        )
        for serial in self._revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
            builder = builder.add_revoked_certificate(entry)
        crl = builder.sign(self._key, hashes.SHA256())
        self.crl_path.write_bytes(crl.public_bytes(serialization.Encoding.PEM))


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


class Wire:
    """A running private broker with its authority, and buses to it."""

    def __init__(self, folder: Path, *, with_crl: bool = True) -> None:
        self.authority = TestAuthority(folder / "authority")
        key_path, cert_path = self.authority.issue("broker", ("localhost", "127.0.0.1"))
        self.config = BrokerConfig(
            folder=folder / "broker",
            host="127.0.0.1",
            port=None,
            ca_path=self.authority.ca_path,
            cert_path=cert_path,
            key_path=key_path,
            crl_path=self.authority.crl_path if with_crl else None,
        )
        self.broker = Broker(self.config)

    def mqtt_config(
        self, name: str, filters: tuple[str, ...] = (), will: Will | None = None, *, port: int | None = None
    ) -> MqttConfig:
        """Return the parameters of a client whose certificate says `name`, with quick retries."""
        key_path = self.authority.folder / f"{name}.key"
        if not key_path.exists():
            self.authority.issue(name)
        return MqttConfig(
            host="127.0.0.1",
            port=port or self.broker.port,
            client_id=name,
            ca_path=self.authority.ca_path,
            cert_path=self.authority.folder / f"{name}.pem",
            key_path=key_path,
            filters=filters,
            will=will,
            reconnect_base_s=0.05,
            reconnect_cap_s=0.5,
        )


@contextmanager
def running_wire(folder: Path, *, with_crl: bool = True) -> Iterator[Wire]:
    """Run a private broker in `folder` for a while; skips the test where there is no Mosquitto."""
    require_mosquitto()
    wire = Wire(folder, with_crl=with_crl)
    wire.broker.start()
    try:
        yield wire
    finally:
        wire.broker.stop()


@contextmanager
def connected(config: MqttConfig, length: int = 1000) -> Iterator[tuple[MqttBus, queue.Queue[Event]]]:
    """Run a bus until the end of the block; it is connected when the block begins."""
    inbox: queue.Queue[Event] = queue.Queue(length)
    bus = MqttBus(config, inbox)
    bus.start()
    try:
        expect(inbox, Connected)
        yield bus, inbox
    finally:
        bus.stop()


def expect(inbox: queue.Queue[Event], kind: type[E], timeout_s: float = DEADLINE_S) -> E:
    """Return the next event of this kind, throwing away others; fails when none comes in time."""
    deadline = time.monotonic() + timeout_s
    seen: list[Event] = []
    while (left := deadline - time.monotonic()) > 0:
        try:
            event = inbox.get(timeout=left)
        except queue.Empty:
            break
        if isinstance(event, kind):
            return event
        seen.append(event)
    raise AssertionError(f"no {kind.__name__} within {timeout_s:g} s, only {seen[-5:]}")
