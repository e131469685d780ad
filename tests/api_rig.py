"""A whole server over real parts (database, authority, metadata, blobs), without sockets: only the broker is in memory.

Its two HTTP faces answer test clients.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi.testclient import TestClient

from fleet_parts import make_variant, reference
from regatta_fleet.api.device import device_app
from regatta_fleet.api.operator import OperatorParts, operator_app
from regatta_fleet.batches.receiving import Receiver
from regatta_fleet.batches.results import ResultsStore
from regatta_fleet.database.engine import open_database, sqlite_url
from regatta_fleet.devices.answering import Answers
from regatta_fleet.devices.enrolling import Enroller, FleetFacts
from regatta_fleet.devices.ingest import Ingest
from regatta_fleet.devices.pump import ChunkPump
from regatta_fleet.devices.revocation import RevokingAuthority
from regatta_fleet.devices.sender import Sender
from regatta_fleet.models.blobs import BlobStore
from regatta_fleet.models.registry import Registry
from regatta_fleet.rollouts.announcing import Announcer
from regatta_fleet.rollouts.controller import Controller, Inbox
from regatta_fleet.schemas import BundleDraft, Problem
from regatta_fleet.views import Views
from regatta_protocol.batch import BatchReport
from regatta_protocol.codec import encode
from regatta_protocol.ids import DeviceId, digest_of_bytes
from regatta_protocol.messages import Reported
from regatta_protocol.testing import MemoryBroker, MemoryBus
from regatta_protocol.topics import SERVER_FILTERS, Up, up
from regatta_provisioning.assignments import AssignmentKey
from regatta_provisioning.authority import Authority
from regatta_provisioning.repository import MetadataRepository
from regatta_provisioning.tokens import parse_token

__all__ = ["GOLDEN", "MODEL", "TOKEN", "Key", "Server", "draft", "problem", "serving"]

TOKEN = "t" * 40
MODEL, GOLDEN = b"model", b"golden"


@dataclass
class Server:
    """A whole server without sockets."""

    operator: TestClient
    device: TestClient
    broker: MemoryBroker
    controller: Controller
    registry: Registry
    metadata: MetadataRepository
    key: AssignmentKey
    blobs: BlobStore
    authority: Authority
    crl_path: Path
    clock: list[float] = field(default_factory=lambda: [1e9])
    reloads: list[int] = field(default_factory=list)

    def token(self, **fields: object) -> str:
        """Return the secret of a new token."""
        answer = self.operator.post("/api/v1/tokens", json=fields)
        assert answer.status_code == 201, answer.text
        return parse_token(answer.json()["token"]).secret

    def report(self, batch: BatchReport) -> None:
        """Have the device pi-1 report of a job, and return when the controller has taken it in."""
        said = Reported(
            device=DeviceId("pi-1"), generation=99, sequence=99, agent_version="0", boot="b", batch=(batch,)
        )
        inbox: Inbox = queue.Queue(10)
        bus = MemoryBus(self.broker, "pi-1", inbox, filters=())
        bus.start()
        bus.publish(up(DeviceId("pi-1"), Up.REPORTED), encode(said))
        self.broker.deliver(0.0)
        self.controller.call(lambda: None)

    def push(self) -> None:
        """Upload a bundle and make it the next version of digits."""
        for content in (MODEL, GOLDEN):
            assert self.operator.put(f"/api/v1/blobs/{digest_of_bytes(content)}", content=content).status_code == 201
        answer = self.operator.post("/api/v1/models/digits/versions", json=draft())
        assert answer.status_code == 201, answer.text


def draft(**more: object) -> dict[str, object]:
    """Return the draft of a bundle of one variant, as JSON."""
    made = BundleDraft(variants=(make_variant(content=MODEL),), golden=reference(GOLDEN))
    return made.model_dump(mode="json") | more


@contextmanager
def serving(tmp_path: Path) -> Iterator[Server]:
    """Give a server whose state is in the folder."""
    clock = [1e9]
    reloads: list[int] = []
    database = open_database(sqlite_url(tmp_path / "fleet.sqlite"))
    authority = Authority.create(tmp_path / "authority", "fleet-1")
    metadata = MetadataRepository.create(tmp_path / "metadata")
    key = AssignmentKey.create(tmp_path / "keys")
    blobs = BlobStore(tmp_path / "blobs", limit_bytes=100_000)
    blobs.prepare()
    registry = Registry(database, blobs, metadata)
    inbox: Inbox = queue.Queue(1000)
    broker = MemoryBroker()
    bus = MemoryBus(broker, "regatta-server", inbox, filters=SERVER_FILTERS)
    pump = ChunkPump(bus, Sender(blobs.open))
    announcer = Announcer("fleet-1", database, bus, key, lambda: clock[0])
    answers = Answers(database, metadata, lambda: clock[0])
    controller = Controller(
        database, bus, inbox, Ingest(database), announcer, answers, metadata, pump, clock=lambda: clock[0]
    )
    revoking = RevokingAuthority(authority, tmp_path / "crl.pem", lambda: reloads.append(1), lambda _device: None)
    facts = FleetFacts(
        "fleet-1",
        "https://127.0.0.1:1",
        authority.ca_pem,
        authority.fingerprint,
        "127.0.0.1",
        2,
        metadata.root_json,
        key.public_key_b64,
        key.key_id,
    )
    enroller = Enroller(database, revoking, facts, controller.note_change)
    results = ResultsStore(tmp_path / "results", reserve_bytes=0)
    results.prepare()
    names = iter(f"r-{number}" for number in range(100))
    parts = OperatorParts(
        token=TOKEN,
        views=Views(database, "fleet-1", "0.1.0", "127.0.0.1:2", lambda: controller.connected),
        blobs=blobs,
        database=database,
        registry=registry,
        enroller=enroller,
        results=results,
        controller=controller,
        healthy=lambda: controller.connected,
        new_id=lambda: next(names),
        clock=lambda: clock[0],
    )
    operator = TestClient(operator_app(parts), headers={"Authorization": f"Bearer {TOKEN}"})
    receiver = Receiver(database, results, enroller.holder, controller.note_change)
    device = TestClient(device_app(enroller, receiver, "0.1.0", lambda: clock[0], lambda: 0.0))
    controller.start()
    bus.start()
    try:
        yield Server(
            operator,
            device,
            broker,
            controller,
            registry,
            metadata,
            key,
            blobs,
            authority,
            tmp_path / "crl.pem",
            clock,
            reloads,
        )
    finally:
        controller.stop()
        bus.stop()
        database.close()


class Key:
    """A device's key and requests made with it."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())

    def renewal(self, certificate_pem: str) -> dict[str, object]:
        return {"certificate_pem": certificate_pem, "csr_pem": self.request("")["csr_pem"]}

    def request(self, secret: str, **fields: object) -> dict[str, object]:
        csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(self._key, hashes.SHA256())
        return {"secret": secret, "csr_pem": csr.public_bytes(serialization.Encoding.PEM).decode(), **fields}


def problem(answer: object, status: int) -> str:
    """Return the words of an answer that must be a Problem with this status."""
    assert answer.status_code == status, answer.text  # type: ignore[attr-defined]  # httpx or requests
    found = Problem.model_validate_json(answer.content)  # type: ignore[attr-defined]
    return f"{found.error}: {found.hint}"
