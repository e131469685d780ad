"""Building a server: the one place where the parts of the fleet's program are made and put together.

`running` yields them started, in the order that each needs the one before, and ends them in the opposite order,
whatever happens in between.
"""

from __future__ import annotations

import ipaddress
import logging
import queue
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI

from regatta_fleet.api.device import device_app
from regatta_fleet.api.operator import OperatorParts, operator_app
from regatta_fleet.batches.receiving import Receiver
from regatta_fleet.batches.results import ResultsStore
from regatta_fleet.broker import Broker, BrokerConfig
from regatta_fleet.database.engine import Database, open_database, sqlite_url
from regatta_fleet.devices.answering import Answers
from regatta_fleet.devices.enrolling import Enroller, FleetFacts
from regatta_fleet.devices.eviction import Evictor
from regatta_fleet.devices.ingest import Ingest
from regatta_fleet.devices.pump import ChunkPump
from regatta_fleet.devices.revocation import RevokingAuthority
from regatta_fleet.devices.sender import Sender
from regatta_fleet.home import FleetFile, Home, ServerInfo, listen, server_info, wait_until_free
from regatta_fleet.models.blobs import BlobStore
from regatta_fleet.models.registry import Registry
from regatta_fleet.rollouts.announcing import Announcer
from regatta_fleet.rollouts.controller import INBOX_LENGTH, Controller, Inbox
from regatta_fleet.settings import Settings
from regatta_fleet.views import Views
from regatta_protocol import __version__
from regatta_protocol.durable import write_durably
from regatta_protocol.ids import SERVER_IDENTITY
from regatta_protocol.mqtt import MqttBus, MqttConfig
from regatta_protocol.topics import SERVER_FILTERS
from regatta_provisioning.assignments import AssignmentKey
from regatta_provisioning.authority import Authority
from regatta_provisioning.repository import MetadataRepository

__all__ = ["Face", "Running", "running"]

logger = logging.getLogger(__name__)

OPERATOR_HOST = "127.0.0.1"
_RECONNECT_CAP_S = 2.0  # one client, mostly on the same machine: no storm to fear
_CONTROLLER_SILENCE_S = 60.0  # longer than any of its steps


@dataclass(frozen=True)
class Face:
    """An app with the socket that it is served on; with key and certificate it is HTTPS."""

    app: FastAPI
    listener: socket.socket
    key_path: Path | None = None
    certificate_path: Path | None = None


@dataclass(frozen=True)
class Running:
    """What server.py serves."""

    home: Home
    info: ServerInfo
    operator: Face
    device: Face
    alive: Callable[[], bool]  # the controller's thread makes progress


@contextmanager
def running(settings: Settings) -> Iterator[Running]:
    """Yield the fleet's parts, started; the fleet is created when the home holds none.

    Raises:
        Misuse: when the set-up cannot work; the text says what to change.
        StorageFull: when the disk is full.
    """
    home = Home(settings.home)
    with ExitStack() as stack:
        stack.enter_context(home.locked())
        home.withdraw()
        fleet = home.load(settings)
        operator_listener = stack.enter_context(listen(OPERATOR_HOST, fleet.operator_port, "operator API"))
        device_listener = stack.enter_context(listen(settings.host, fleet.device_port, "device API"))
        authority = Authority.create(home.authority, fleet.fleet)
        database = open_database(settings.database or sqlite_url(home.database))
        stack.callback(database.close)
        broker, link = _broker(settings, home, fleet, authority)
        revoking = RevokingAuthority(
            authority,
            _crl_path(home),
            broker.reload if broker is not None else _nothing,
            Evictor(authority, link, home.keys).cut,
        )
        revoking.write()
        if broker is not None:
            wait_until_free(settings.host, link.port, "broker")
            broker.start()
            stack.callback(broker.stop)
        info = server_info(fleet, link.host if broker is None else fleet.advertise, link.port, __version__)
        parts, controller = _start(stack, home, fleet, info, database, authority, revoking, link)
        receiver = Receiver(database, parts.results, parts.enroller.holder, controller.note_change)
        hosts = _hosts(settings, fleet)
        key_path, certificate_path = authority.issue_server(home.keys, "device-api", hosts)
        yield Running(
            home,
            info,
            Face(operator_app(parts), operator_listener),
            Face(device_app(parts.enroller, receiver, __version__), device_listener, key_path, certificate_path),
            lambda: _makes_progress(controller),
        )


def _start(
    stack: ExitStack,
    home: Home,
    fleet: FleetFile,
    info: ServerInfo,
    database: Database,
    authority: Authority,
    revoking: RevokingAuthority,
    link: MqttConfig,
) -> tuple[OperatorParts, Controller]:
    metadata = MetadataRepository.create(home.metadata)
    key = AssignmentKey.create(home.keys)
    blobs = BlobStore(home.blobs)
    blobs.prepare()
    results = ResultsStore(home.results)
    results.prepare()
    registry = Registry(database, blobs, metadata)
    registry.complete(time.time())
    inbox: Inbox = queue.Queue(INBOX_LENGTH)
    bus = MqttBus(link, inbox)
    pump = ChunkPump(bus, Sender(blobs.open))
    announcer, answers = Announcer(fleet.fleet, database, bus, key), Answers(database, metadata)
    controller = Controller(database, bus, inbox, Ingest(database), announcer, answers, metadata, pump)
    facts = FleetFacts(
        fleet=fleet.fleet,
        device_url=info.device_url,
        ca_pem=authority.ca_pem,
        ca_fingerprint=authority.fingerprint,
        broker_host=info.broker_host,
        broker_port=info.broker_port,
        root_json=metadata.root_json,
        assignment_key=key.public_key_b64,
        assignment_key_id=key.key_id,
    )
    enroller = Enroller(database, revoking, facts, controller.note_change)
    views = Views(
        database,
        fleet.fleet,
        info.version,
        f"{info.broker_host}:{info.broker_port}",
        lambda: controller.connected,
    )
    pump.start()
    stack.callback(pump.stop)
    controller.start()
    stack.callback(controller.stop)
    bus.start()
    stack.callback(bus.stop)
    parts = OperatorParts(
        token=fleet.token,
        views=views,
        blobs=blobs,
        database=database,
        registry=registry,
        enroller=enroller,
        results=results,
        controller=controller,
        healthy=lambda: controller.connected and _makes_progress(controller),
        new_id=lambda: f"r-{secrets.token_hex(4)}",
    )
    return parts, controller


def _broker(settings: Settings, home: Home, fleet: FleetFile, authority: Authority) -> tuple[Broker | None, MqttConfig]:
    """Return the private broker, unless others run one, and how the server connects."""
    client_key, client_certificate = authority.issue_client(SERVER_IDENTITY)
    ca_path = home.broker / "ca.pem"
    home.broker.mkdir(mode=0o700, exist_ok=True)
    write_durably(ca_path, authority.ca_pem.encode(), 0o644)
    broker = None
    host, port = _reachable(settings.host), fleet.broker_port
    if settings.external_broker is not None:
        host, port = settings.external_broker
    else:
        key_path, certificate_path = authority.issue_server(home.keys, "broker", _hosts(settings, fleet))
        broker = Broker(
            BrokerConfig(home.broker, settings.host, port, ca_path, certificate_path, key_path, _crl_path(home)),
            on_restart=lambda reason: logger.warning("event=broker_restarted reason=%s", reason),
        )
    link = MqttConfig(
        host=host,
        port=port,
        client_id=SERVER_IDENTITY,
        ca_path=settings.broker_ca or ca_path,
        cert_path=settings.broker_certificate or client_certificate,
        key_path=settings.broker_key or client_key,
        filters=SERVER_FILTERS,
        reconnect_base_s=0.2,
        reconnect_cap_s=_RECONNECT_CAP_S,
    )
    return broker, link


def _crl_path(home: Home) -> Path:
    return home.broker / "crl.pem"


def _hosts(settings: Settings, fleet: FleetFile) -> list[str]:
    """Return every name that a certificate of this server must be good for."""
    named = [fleet.advertise, _reachable(settings.host), "localhost", "127.0.0.1"]
    return list(dict.fromkeys(named))


def _reachable(host: str) -> str:
    """Return where a listener on `host` is reached from this machine."""
    address = ipaddress.ip_address(host)
    if not address.is_unspecified:
        return host
    return "::1" if address.version == 6 else "127.0.0.1"


def _makes_progress(controller: Controller) -> bool:
    return time.monotonic() - controller.alive_at_s < _CONTROLLER_SILENCE_S


def _nothing() -> None:
    """A broker that others run reads the list by their own means."""
