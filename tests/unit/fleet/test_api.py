"""Both HTTP faces over real parts (database, authority, metadata, blobs); only the broker is in memory."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi.testclient import TestClient

from fleet_parts import make_variant, reference
from regatta_fleet.api.device import device_app
from regatta_fleet.api.limits import RateLimit
from regatta_fleet.api.operator import OperatorParts, operator_app
from regatta_fleet.blobs import BlobStore
from regatta_fleet.controller import Controller, Inbox
from regatta_fleet.database.engine import open_database, sqlite_url
from regatta_fleet.enrolling import Enroller, FleetFacts
from regatta_fleet.ingest import Ingest
from regatta_fleet.pump import ChunkPump
from regatta_fleet.receiving import Receiver
from regatta_fleet.registry import Registry
from regatta_fleet.results import ResultsStore
from regatta_fleet.revocation import RevokingAuthority
from regatta_fleet.schemas import BundleDraft, Problem, RolloutDetail, VersionDetail
from regatta_fleet.sender import Sender
from regatta_fleet.views import Views
from regatta_protocol.batch import BatchReport, BatchState
from regatta_protocol.codec import decode, encode
from regatta_protocol.errors import StorageFull
from regatta_protocol.ids import DeviceId, digest_of_bytes
from regatta_protocol.manifest import target_path
from regatta_protocol.messages import Reported, SignedAssignment
from regatta_protocol.testing import MemoryBroker, MemoryBus
from regatta_protocol.topics import SERVER_FILTERS, Up, device_filters, up
from regatta_provisioning.assignments import AssignmentKey, verify_assignment
from regatta_provisioning.authority import Authority
from regatta_provisioning.certificates import serial_of
from regatta_provisioning.enrollment import EnrollResponse
from regatta_provisioning.repository import MetadataRepository
from regatta_provisioning.tokens import parse_token

TOKEN = "t" * 40
MODEL, GOLDEN = b"model", b"golden"


@dataclass
class Fleet:
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
        answer = self.operator.post("/api/v1/models/digits/versions", json=_draft())
        assert answer.status_code == 201, answer.text


def _draft(**more: object) -> dict[str, object]:
    draft = BundleDraft(variants=(make_variant(content=MODEL),), golden=reference(GOLDEN))
    return draft.model_dump(mode="json") | more


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
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
    controller = Controller(
        "fleet-1", database, bus, inbox, Ingest(database), key, metadata, pump, clock=lambda: clock[0]
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
    yield Fleet(
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


def _problem(answer: object, status: int) -> str:
    """Return the words of an answer that must be a Problem with this status."""
    assert answer.status_code == status, answer.text  # type: ignore[attr-defined]  # httpx or requests
    found = Problem.model_validate_json(answer.content)  # type: ignore[attr-defined]
    return f"{found.error}: {found.hint}"


def test_every_endpoint_wants_the_token(fleet: Fleet) -> None:
    """All of OpenAPI's but health; a wrong token, none, and the page's cookie do not open one."""
    paths = fleet.operator.get("/openapi.json").json()["paths"]
    asked = 0
    for path, methods in paths.items():
        if path == "/healthz":
            continue
        for method in methods:
            url = path.replace("{digest}", "0" * 64).replace("{version}", "1").replace("{", "").replace("}", "")
            for given in (
                {"Authorization": "Bearer wrong"},
                {"Authorization": ""},
                {"Authorization": f"Basic {TOKEN}"},
            ):
                answer = fleet.operator.request(method, url, headers=given)
                assert answer.status_code == 401, (method, url)
                asked += 1
    assert asked == 3 * 30
    assert fleet.operator.get("/healthz", headers={"Authorization": ""}).status_code in (200, 503)


def test_every_endpoint_is_described(fleet: Fleet) -> None:
    """OpenAPI has words and the shape of errors for each."""
    for path, methods in fleet.operator.get("/openapi.json").json()["paths"].items():
        for method, described in methods.items():
            assert described.get("description"), (method, path)
            assert "4XX" in described["responses"], (method, path)


def test_a_bundle_becomes_a_signed_version(fleet: Fleet) -> None:
    """Files first, then the draft; the manifest is a blob, a signed target, and a row; versions count up."""
    fleet.push()
    fleet.push()
    answer = fleet.operator.get("/api/v1/models/digits/versions/2")
    manifest = VersionDetail.model_validate_json(answer.content).manifest

    assert manifest.version == 2
    assert fleet.operator.get("/api/v1/models").json() == [{"name": "digits", "versions": [1, 2], "devices_serving": 0}]
    assert fleet.operator.get("/api/v1/models/digits").json()["versions"] == [1, 2]
    assert "timestamp.json" in fleet.metadata.files_for(target_path(manifest.ref), 1)
    assert fleet.operator.head(f"/api/v1/blobs/{digest_of_bytes(MODEL)}").status_code == 200


def test_a_draft_keeps_fields_of_a_newer_command_line(fleet: Fleet) -> None:
    """But cannot name its own version."""
    fleet.push()
    answer = fleet.operator.post("/api/v1/models/digits/versions", json=_draft(novelty={"a": 1}, version=99))

    assert (answer.json()["version"], answer.json()["novelty"]) == (2, {"a": 1})


def test_uploads_that_are_refused(fleet: Fleet) -> None:
    """Another digest, too long, no digest, a full disk; each with a status of its own."""
    put, digest = fleet.operator.put, digest_of_bytes(MODEL)

    assert "arrived with digest" in _problem(put(f"/api/v1/blobs/{digest}", content=b"other"), 422)
    assert "longer than the limit" in _problem(put(f"/api/v1/blobs/{digest}", content=b"x" * 100_001), 413)
    _problem(put("/api/v1/blobs/..%2fescape", content=b""), 404)
    assert "digest" in _problem(put("/api/v1/blobs/short", content=b""), 422)
    assert fleet.operator.head(f"/api/v1/blobs/{digest}").status_code == 404


def test_a_full_disk_is_507(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the command line says to free space, and may be repeated."""

    def full(*_args: object) -> None:
        raise StorageFull("no space left: free some")

    monkeypatch.setattr("regatta_fleet.blobs.Upload.write", full)
    answer = fleet.operator.put(f"/api/v1/blobs/{digest_of_bytes(MODEL)}", content=MODEL)
    assert "free some" in _problem(answer, 507)


def test_pushes_that_are_refused(fleet: Fleet) -> None:
    """Missing files, equal names, no variant, a wrong name, no JSON, too much of it."""
    push = fleet.operator.post
    url = "/api/v1/models/digits/versions"
    assert "not uploaded" in _problem(push(url, json=_draft()), 422)
    fleet.push()
    twice = [make_variant(content=MODEL).model_dump(mode="json")] * 2
    assert "same name" in _problem(push(url, json=_draft(variants=twice)), 422)
    assert "variants" in _problem(push(url, json=_draft(variants=[])), 422)
    assert "name" in _problem(push("/api/v1/models/Digits!/versions", json=_draft()), 422)
    assert _problem(push(url, content=b"{" * 1000, headers={"Content-Type": "application/json"}), 422)
    assert "over the limit" in _problem(push(url, content=b" " * 2_000_000), 413)
    assert "over the limit" in _problem(push(url, content=iter([b" " * 600_000] * 2)), 413)
    assert fleet.operator.get("/api/v1/models/digits").json()["versions"] == [1]


def test_a_version_that_was_stored_and_not_signed_is_completed(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server killed between the row and the signature signs the very same text at its next start."""
    for content in (MODEL, GOLDEN):
        fleet.operator.put(f"/api/v1/blobs/{digest_of_bytes(content)}", content=content)
    with monkeypatch.context() as patch:

        def killed(*_args: object) -> None:
            raise StorageFull("no space left: free some")

        patch.setattr(fleet.metadata, "add_target", killed)
        _problem(fleet.operator.post("/api/v1/models/digits/versions", json=_draft()), 507)
    _problem(fleet.operator.get("/api/v1/models/digits"), 404)

    fleet.registry.complete(5.0)

    assert fleet.operator.get("/api/v1/models/digits").json()["versions"] == [1]
    assert fleet.metadata.files_for("models/digits/1/manifest.json", 1)


def test_enrolment(fleet: Fleet) -> None:
    """Token for certificate, once; the same key may ask again; group and board are kept."""
    key = Key()
    body = key.request(fleet.token(group="lab"), device="pi-1", board={"model": "Pi 5"})
    first = fleet.device.post("/api/v1/enroll", json=body)
    again = fleet.device.post("/api/v1/enroll", json=key.request(str(body["secret"]), device="pi-1"))
    answer = EnrollResponse.model_validate_json(first.content)

    assert first.content == again.content
    assert (answer.device, answer.fleet, answer.broker_port) == ("pi-1", "fleet-1", 2)
    assert fleet.device.get("/api/v1/ca").text == fleet.authority.ca_pem
    (shown,) = fleet.operator.get("/api/v1/devices").json()
    assert (shown["id"], shown["group"], shown["board"]["model"]) == ("pi-1", "lab", "Pi 5")
    assert fleet.operator.get("/api/v1/devices/pi-1").json()["races"] == []


def test_enrolments_that_are_refused(fleet: Fleet) -> None:
    """Unknown, used, expired, for another device, an id that is taken or kept, no CSR: each says which."""
    post = fleet.device.post
    url = "/api/v1/enroll"
    key = Key()
    used = fleet.token()
    assert post(url, json=key.request(used, device="pi-1")).status_code == 200

    assert "not known" in _problem(post(url, json=key.request("A" * 32)), 401)
    assert "used already, by pi-1" in _problem(post(url, json=Key().request(used)), 409)
    assert "is for device 'pi-2'" in _problem(post(url, json=key.request(fleet.token(device="pi-2"), device="x")), 403)
    assert "is taken" in _problem(post(url, json=Key().request(fleet.token(), device="pi-1")), 409)
    assert "kept for the server" in _problem(post(url, json=key.request(fleet.token(), device="regatta-server")), 422)
    assert "no request for a certificate" in _problem(
        post(url, json={"secret": fleet.token(), "csr_pem": "nonsense"}), 422
    )
    assert "secret" in _problem(post(url, json={"secret": "short", "csr_pem": ""}), 422)
    assert "over the limit" in _problem(post(url, content=b" " * 200_000), 413)
    late = fleet.token(valid_s=60)
    fleet.clock[0] += 61
    assert "expired 1 s ago" in _problem(post(url, json=key.request(late)), 410)
    fleet.clock[0] += 4000
    assert "expired" in _problem(post(url, json=key.request(used)), 410)


def test_renewal(fleet: Fleet) -> None:
    """The holder of the key gets its next certificate; revoking takes both."""
    key = Key()
    first = fleet.device.post("/api/v1/enroll", json=key.request(fleet.token(), device="pi-1")).json()
    answer = fleet.device.post("/api/v1/renew", json=key.renewal(first["certificate_pem"]))
    second = answer.json()["certificate_pem"]

    assert answer.status_code == 200
    assert second != first["certificate_pem"]
    assert serial_of(second) != serial_of(first["certificate_pem"])
    assert fleet.device.post("/api/v1/renew", json=key.renewal(second)).status_code == 200
    assert fleet.operator.delete("/api/v1/devices/pi-1").status_code == 204
    assert f"{serial_of(second):x}" in (fleet.crl_path.parent / "authority" / "revoked.json").read_text()
    for certificate in (first["certificate_pem"], second):
        assert fleet.device.post("/api/v1/renew", json=key.renewal(certificate)).status_code in (403, 422)


def test_a_certificate_that_has_ended_is_renewed(fleet: Fleet) -> None:
    """A device that was off for a year is let in again; certificates that nobody can show any more are forgotten."""
    key = Key()
    first = fleet.device.post("/api/v1/enroll", json=key.request(fleet.token(), device="pi-1")).json()
    renewal = key.renewal(first["certificate_pem"])
    lost = fleet.device.post("/api/v1/renew", json=renewal).json()["certificate_pem"]
    fleet.clock[0] = time.time() + 400 * 86_400

    assert fleet.device.post("/api/v1/renew", json=renewal).status_code == 200
    assert "enrolled anew" in _problem(fleet.device.post("/api/v1/renew", json=key.renewal(lost)), 403)


def test_renewals_that_are_refused(fleet: Fleet) -> None:
    """Another's certificate, another authority's, no certificate, one from before the device enrolled anew."""
    post = fleet.device.post
    url = "/api/v1/renew"
    old, key, other = Key(), Key(), Key()
    before = post("/api/v1/enroll", json=old.request(fleet.token(), device="pi-1")).json()["certificate_pem"]
    mine = post("/api/v1/enroll", json=key.request(fleet.token(device="pi-1"))).json()["certificate_pem"]
    stranger = Authority.create(fleet.crl_path.parent / "stranger", "fleet-1")
    forged = stranger.sign_device_csr(str(key.request("")["csr_pem"]), DeviceId("pi-1"))

    assert "of another key" in _problem(post(url, json=other.renewal(mine)), 422)
    assert "not of this fleet" in _problem(post(url, json=key.renewal(forged)), 422)
    assert "no certificate in PEM form" in _problem(post(url, json=key.renewal("nonsense")), 422)
    assert "is not valid" in _problem(post(url, json=key.renewal(fleet.authority.ca_pem)), 422)
    assert "is revoked" in _problem(post(url, json=old.renewal(before)), 422)
    assert post(url, json=key.renewal(mine)).status_code == 200


def test_a_device_without_a_name_gets_one(fleet: Fleet) -> None:
    """The token's, or a fresh one."""
    named = fleet.device.post("/api/v1/enroll", json=Key().request(fleet.token(device="pi-7")))
    fresh = fleet.device.post("/api/v1/enroll", json=Key().request(fleet.token()))

    assert named.json()["device"] == "pi-7"
    assert fresh.json()["device"].startswith("device-")


def test_a_device_enrols_anew_by_a_token_of_its_own(fleet: Fleet) -> None:
    """Its old certificate is revoked."""
    first = fleet.device.post("/api/v1/enroll", json=Key().request(fleet.token(), device="pi-1")).json()
    second = fleet.device.post("/api/v1/enroll", json=Key().request(fleet.token(device="pi-1"))).json()

    crl = x509.load_pem_x509_crl(fleet.crl_path.read_bytes())
    assert crl.get_revoked_certificate_by_serial_number(serial_of(first["certificate_pem"])) is not None
    assert crl.get_revoked_certificate_by_serial_number(serial_of(second["certificate_pem"])) is None
    assert fleet.reloads == [1]


def test_a_revoked_device(fleet: Fleet) -> None:
    """Its certificate is on the list, its row marked; asking twice does no harm; an unknown one is 404."""
    enrolled = fleet.device.post("/api/v1/enroll", json=Key().request(fleet.token(), device="pi-1")).json()
    for _ in range(2):
        assert fleet.operator.delete("/api/v1/devices/pi-1").status_code == 204

    crl = x509.load_pem_x509_crl(fleet.crl_path.read_bytes())
    assert crl.get_revoked_certificate_by_serial_number(serial_of(enrolled["certificate_pem"])) is not None
    assert fleet.operator.get("/api/v1/devices/pi-1").json()["revoked"]
    _problem(fleet.operator.delete("/api/v1/devices/nobody"), 404)


def test_too_many_attempts_to_enrol(fleet: Fleet) -> None:
    """From one address, with words on when to come back."""
    body = Key().request("A" * 32)
    answers = [fleet.device.post("/api/v1/enroll", json=body) for _ in range(61)]

    assert [answer.status_code for answer in answers[:60]] == [401] * 60
    assert "try again" in _problem(answers[60], 429)
    assert answers[60].headers["Retry-After"]


def test_a_rollout_by_http(fleet: Fleet) -> None:
    """Start publishes a signed assignment under a higher generation; abort takes it back; a second abort is 409."""
    enrolled = fleet.device.post("/api/v1/enroll", json=Key().request(fleet.token(), device="pi-1")).json()
    fleet.push()
    inbox: queue.Queue[object] = queue.Queue(100)
    pi = MemoryBus(fleet.broker, "pi-1", inbox, filters=device_filters(DeviceId("pi-1")))
    pi.start()
    started = fleet.operator.post("/api/v1/rollouts", json={"model": "digits", "version": 1, "waves": [1.0]})
    detail = RolloutDetail.model_validate_json(started.content)

    def assigned() -> tuple[int, dict[str, int]]:
        while True:
            event = inbox.get(timeout=10)
            if not hasattr(event, "payload"):
                continue
            signed = decode(SignedAssignment, event.payload)
            key, key_id = enrolled["assignment_key"], enrolled["assignment_key_id"]
            found = verify_assignment(signed, key, key_id, "fleet-1", DeviceId("pi-1"))
            if found.generation:
                return found.generation, {name: each.version for name, each in found.models.items()}

    assert started.status_code == 201
    assert (detail.id, detail.state, detail.waves[0].state) == ("r-0", "running", "observing")
    assert assigned() == (1, {"digits": 1})
    assert _problem(fleet.operator.post("/api/v1/rollouts", json={"model": "digits", "version": 1}), 409)
    assert fleet.operator.post("/api/v1/rollouts/r-0/abort").json()["state"] == "aborted"
    assert assigned() == (2, {})
    assert "aborted already" in _problem(fleet.operator.post("/api/v1/rollouts/r-0/abort"), 409)
    assert "nothing to promote" in _problem(fleet.operator.post("/api/v1/rollouts/r-0/promote"), 409)
    assert [each["id"] for each in fleet.operator.get("/api/v1/rollouts").json()] == ["r-0"]
    assert fleet.operator.get("/api/v1/rollouts/r-0").json()["state"] == "aborted"
    pi.stop()


def test_rollouts_that_are_refused(fleet: Fleet) -> None:
    """No such version, nobody to send it to, odd waves, no such rollout."""
    post = fleet.operator.post
    fleet.push()
    assert "not in the registry" in _problem(post("/api/v1/rollouts", json={"model": "digits", "version": 9}), 404)
    assert "for no device" in _problem(post("/api/v1/rollouts", json={"model": "digits", "version": 1}), 422)
    fleet.device.post("/api/v1/enroll", json=Key().request(fleet.token(), device="pi-1"))
    waves = {"model": "digits", "version": 1, "waves": [0.5, 0.2]}
    assert "cumulative" in _problem(post("/api/v1/rollouts", json=waves), 422)
    nobody = {"model": "digits", "version": 1, "to": ["group:none"]}
    assert "groups with devices" in _problem(post("/api/v1/rollouts", json=nobody), 422)
    for path in ("/api/v1/rollouts/none/abort", "/api/v1/rollouts/none/promote"):
        _problem(post(path), 404)
    for path in ("/rollouts/none", "/devices/none", "/models/none", "/models/digits/versions/9", "/nothing"):
        _problem(fleet.operator.get(f"/api/v1{path}"), 404)


def test_status_and_history(fleet: Fleet) -> None:
    """What happened is in the history, oldest first."""
    fleet.device.post("/api/v1/enroll", json=Key().request(fleet.token(), device="pi-1"))
    fleet.push()
    status = fleet.operator.get("/api/v1/status").json()
    events = fleet.operator.get("/api/v1/events").json()

    assert (status["fleet"], status["broker"]) == ("fleet-1", "127.0.0.1:2")
    assert [event["kind"] for event in events] == ["device_enrolled", "model_pushed"]
    assert fleet.operator.get("/api/v1/events?since=2e9").json() == []
    _problem(fleet.operator.get("/api/v1/events?since=nan"), 422)


def test_an_unexpected_error_is_a_problem_too(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its details, which are in the log."""

    def broken(*_args: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(Views, "status", broken)
    client = TestClient(fleet.operator.app, raise_server_exceptions=False)
    answer = client.get("/api/v1/status", headers={"Authorization": f"Bearer {TOKEN}"})
    assert "secret" not in _problem(answer, 500)


def test_rate_limit_forgets_and_refills() -> None:
    """A burst, then a steady rate; keys over the bound are forgotten, oldest first."""
    now = [0.0]
    limit = RateLimit(2, 1.0, lambda: now[0], keys=2)

    assert [limit.allow("a") for _ in range(3)] == [True, True, False]
    now[0] += 1
    assert [limit.allow("a") for _ in range(2)] == [True, False]
    assert all(limit.allow(key) for key in ("b", "c"))
    assert limit.allow("a")


def test_the_output_of_a_job_comes_from_the_device_that_holds_its_key(fleet: Fleet) -> None:
    """Asked for, offered with the certificate, sent in pieces over HTTPS, and read by the operator; nobody else can."""
    fleet.push()
    key, stranger, output = Key(), Key(), b"answers\n" * 1000
    enrolled = fleet.device.post("/api/v1/enroll", json=key.request(fleet.token(device="pi-1"), device="pi-1")).json()
    batch = fleet.operator.post("/api/v1/batch", json={"model": "digits", "on": ["pi-1"], "input": "/data"}).json()[
        "id"
    ]
    offer = {
        **key.renewal(enrolled["certificate_pem"]),
        "batch": batch,
        "size_bytes": len(output),
        "digest": digest_of_bytes(output),
    }
    assert "nobody asks" in _problem(fleet.device.post("/api/v1/results", json=offer), 404)
    done = BatchReport(id=batch, state=BatchState.DONE, records=1000)
    fleet.report(done)
    asked = fleet.operator.post(f"/api/v1/batch/{batch}/results", json={})
    assert asked.json()["devices"][0]["results"]["state"] == "wanted"

    forged = {**offer, **stranger.renewal(enrolled["certificate_pem"])}
    assert "of another key" in _problem(fleet.device.post("/api/v1/results", json=forged), 422)
    ticket = fleet.device.post("/api/v1/results", json=offer).json()
    assert ticket["offset"] == 0
    place = f"/api/v1/results/{ticket['ticket']}"
    assert fleet.device.put(place, params={"offset": 0}, content=output[:5000]).json()["offset"] == 5000
    assert "offer the file again" in _problem(fleet.device.put(place, params={"offset": 4000}, content=b"x"), 409)
    assert "offer the file again" in _problem(fleet.device.put("/api/v1/results/x", params={"offset": 0}), 410)
    assert "is not here" in _problem(fleet.operator.get(f"/api/v1/batch/{batch}/results/pi-1"), 404)
    assert fleet.device.put(place, params={"offset": 5000}, content=output[5000:]).json()["offset"] == len(output)

    assert fleet.operator.get(f"/api/v1/batch/{batch}/results/pi-1").content == output
    shown = fleet.operator.get(f"/api/v1/batch/{batch}").json()["devices"][0]["results"]
    assert (shown["state"], shown["received_bytes"]) == ("here", len(output))
    assert fleet.operator.delete(f"/api/v1/batch/{batch}/results").json()["devices"][0]["results"] is None
    assert "is not here" in _problem(fleet.operator.get(f"/api/v1/batch/{batch}/results/pi-1"), 404)
    for bad in ("..", "b-1/../..", "B-1"):
        assert fleet.operator.get(f"/api/v1/batch/{bad}/results/pi-1").status_code in (404, 422)
