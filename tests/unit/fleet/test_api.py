"""The operator's HTTP face, and what devices send to theirs, over a server without sockets."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from api_rig import GOLDEN, MODEL, TOKEN, Key, Server, draft, problem, serving
from fleet_parts import make_variant
from regatta_fleet.schemas import RolloutDetail, VersionDetail
from regatta_fleet.views import Views
from regatta_protocol.batch import BatchReport, BatchState
from regatta_protocol.codec import decode
from regatta_protocol.errors import StorageFull
from regatta_protocol.ids import DeviceId, digest_of_bytes
from regatta_protocol.manifest import target_path
from regatta_protocol.messages import SignedAssignment
from regatta_protocol.testing import MemoryBus
from regatta_protocol.topics import device_filters
from regatta_provisioning.assignments import verify_assignment


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path) as server:
        yield server


def test_every_endpoint_wants_the_token(fleet: Server) -> None:
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


def test_every_endpoint_is_described(fleet: Server) -> None:
    """OpenAPI has words and the shape of errors for each."""
    for path, methods in fleet.operator.get("/openapi.json").json()["paths"].items():
        for method, described in methods.items():
            assert described.get("description"), (method, path)
            assert "4XX" in described["responses"], (method, path)


def test_a_bundle_becomes_a_signed_version(fleet: Server) -> None:
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


def test_a_draft_keeps_fields_of_a_newer_command_line(fleet: Server) -> None:
    """But cannot name its own version."""
    fleet.push()
    answer = fleet.operator.post("/api/v1/models/digits/versions", json=draft(novelty={"a": 1}, version=99))

    assert (answer.json()["version"], answer.json()["novelty"]) == (2, {"a": 1})


def test_uploads_that_are_refused(fleet: Server) -> None:
    """Another digest, too long, no digest, a full disk; each with a status of its own."""
    put, digest = fleet.operator.put, digest_of_bytes(MODEL)

    assert "arrived with digest" in problem(put(f"/api/v1/blobs/{digest}", content=b"other"), 422)
    assert "longer than the limit" in problem(put(f"/api/v1/blobs/{digest}", content=b"x" * 100_001), 413)
    problem(put("/api/v1/blobs/..%2fescape", content=b""), 404)
    assert "digest" in problem(put("/api/v1/blobs/short", content=b""), 422)
    assert fleet.operator.head(f"/api/v1/blobs/{digest}").status_code == 404


def test_a_full_disk_is_507(fleet: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the command line says to free space, and may be repeated."""

    def full(*_args: object) -> None:
        raise StorageFull("no space left: free some")

    monkeypatch.setattr("regatta_fleet.models.blobs.Upload.write", full)
    answer = fleet.operator.put(f"/api/v1/blobs/{digest_of_bytes(MODEL)}", content=MODEL)
    assert "free some" in problem(answer, 507)


def test_pushes_that_are_refused(fleet: Server) -> None:
    """Missing files, equal names, no variant, a wrong name, no JSON, too much of it."""
    push = fleet.operator.post
    url = "/api/v1/models/digits/versions"
    assert "not uploaded" in problem(push(url, json=draft()), 422)
    fleet.push()
    twice = [make_variant(content=MODEL).model_dump(mode="json")] * 2
    assert "same name" in problem(push(url, json=draft(variants=twice)), 422)
    assert "variants" in problem(push(url, json=draft(variants=[])), 422)
    assert "name" in problem(push("/api/v1/models/Digits!/versions", json=draft()), 422)
    assert problem(push(url, content=b"{" * 1000, headers={"Content-Type": "application/json"}), 422)
    assert "over the limit" in problem(push(url, content=b" " * 2_000_000), 413)
    assert "over the limit" in problem(push(url, content=iter([b" " * 600_000] * 2)), 413)
    assert fleet.operator.get("/api/v1/models/digits").json()["versions"] == [1]


def test_a_version_that_was_stored_and_not_signed_is_completed(fleet: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server killed between the row and the signature signs the very same text at its next start."""
    for content in (MODEL, GOLDEN):
        fleet.operator.put(f"/api/v1/blobs/{digest_of_bytes(content)}", content=content)
    with monkeypatch.context() as patch:

        def killed(*_args: object) -> None:
            raise StorageFull("no space left: free some")

        patch.setattr(fleet.metadata, "add_target", killed)
        problem(fleet.operator.post("/api/v1/models/digits/versions", json=draft()), 507)
    problem(fleet.operator.get("/api/v1/models/digits"), 404)

    fleet.registry.complete(5.0)

    assert fleet.operator.get("/api/v1/models/digits").json()["versions"] == [1]
    assert fleet.metadata.files_for("models/digits/1/manifest.json", 1)


def test_a_rollout_by_http(fleet: Server) -> None:
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
    assert problem(fleet.operator.post("/api/v1/rollouts", json={"model": "digits", "version": 1}), 409)
    assert fleet.operator.post("/api/v1/rollouts/r-0/abort").json()["state"] == "aborted"
    assert assigned() == (2, {})
    assert "aborted already" in problem(fleet.operator.post("/api/v1/rollouts/r-0/abort"), 409)
    assert "nothing to promote" in problem(fleet.operator.post("/api/v1/rollouts/r-0/promote"), 409)
    assert [each["id"] for each in fleet.operator.get("/api/v1/rollouts").json()] == ["r-0"]
    assert fleet.operator.get("/api/v1/rollouts/r-0").json()["state"] == "aborted"
    pi.stop()


def test_rollouts_that_are_refused(fleet: Server) -> None:
    """No such version, nobody to send it to, odd waves, no such rollout."""
    post = fleet.operator.post
    fleet.push()
    assert "not in the registry" in problem(post("/api/v1/rollouts", json={"model": "digits", "version": 9}), 404)
    assert "for no device" in problem(post("/api/v1/rollouts", json={"model": "digits", "version": 1}), 422)
    fleet.device.post("/api/v1/enroll", json=Key().request(fleet.token(), device="pi-1"))
    waves = {"model": "digits", "version": 1, "waves": [0.5, 0.2]}
    assert "cumulative" in problem(post("/api/v1/rollouts", json=waves), 422)
    nobody = {"model": "digits", "version": 1, "to": ["group:none"]}
    assert "groups with devices" in problem(post("/api/v1/rollouts", json=nobody), 422)
    for path in ("/api/v1/rollouts/none/abort", "/api/v1/rollouts/none/promote"):
        problem(post(path), 404)
    for path in ("/rollouts/none", "/devices/none", "/models/none", "/models/digits/versions/9", "/nothing"):
        problem(fleet.operator.get(f"/api/v1{path}"), 404)


def test_status_and_history(fleet: Server) -> None:
    """What happened is in the history, oldest first."""
    fleet.device.post("/api/v1/enroll", json=Key().request(fleet.token(), device="pi-1"))
    fleet.push()
    status = fleet.operator.get("/api/v1/status").json()
    events = fleet.operator.get("/api/v1/events").json()

    assert (status["fleet"], status["broker"]) == ("fleet-1", "127.0.0.1:2")
    assert [event["kind"] for event in events] == ["device_enrolled", "model_pushed"]
    assert fleet.operator.get("/api/v1/events?since=2e9").json() == []
    problem(fleet.operator.get("/api/v1/events?since=nan"), 422)


def test_an_unexpected_error_is_a_problem_too(fleet: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its details, which are in the log."""

    def broken(*_args: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(Views, "status", broken)
    client = TestClient(fleet.operator.app, raise_server_exceptions=False)
    answer = client.get("/api/v1/status", headers={"Authorization": f"Bearer {TOKEN}"})
    assert "secret" not in problem(answer, 500)


def test_the_output_of_a_job_comes_from_the_device_that_holds_its_key(fleet: Server) -> None:
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
    assert "nobody asks" in problem(fleet.device.post("/api/v1/results", json=offer), 404)
    done = BatchReport(id=batch, state=BatchState.DONE, records=1000)
    fleet.report(done)
    asked = fleet.operator.post(f"/api/v1/batch/{batch}/results", json={})
    assert asked.json()["devices"][0]["results"]["state"] == "wanted"

    forged = {**offer, **stranger.renewal(enrolled["certificate_pem"])}
    assert "of another key" in problem(fleet.device.post("/api/v1/results", json=forged), 422)
    ticket = fleet.device.post("/api/v1/results", json=offer).json()
    assert ticket["offset"] == 0
    place = f"/api/v1/results/{ticket['ticket']}"
    assert fleet.device.put(place, params={"offset": 0}, content=output[:5000]).json()["offset"] == 5000
    assert "offer the file again" in problem(fleet.device.put(place, params={"offset": 4000}, content=b"x"), 409)
    assert "offer the file again" in problem(fleet.device.put("/api/v1/results/x", params={"offset": 0}), 410)
    assert "is not here" in problem(fleet.operator.get(f"/api/v1/batch/{batch}/results/pi-1"), 404)
    assert fleet.device.put(place, params={"offset": 5000}, content=output[5000:]).json()["offset"] == len(output)

    assert fleet.operator.get(f"/api/v1/batch/{batch}/results/pi-1").content == output
    shown = fleet.operator.get(f"/api/v1/batch/{batch}").json()["devices"][0]["results"]
    assert (shown["state"], shown["received_bytes"]) == ("here", len(output))
    assert fleet.operator.delete(f"/api/v1/batch/{batch}/results").json()["devices"][0]["results"] is None
    assert "is not here" in problem(fleet.operator.get(f"/api/v1/batch/{batch}/results/pi-1"), 404)
    for bad in ("..", "b-1/../..", "B-1"):
        assert fleet.operator.get(f"/api/v1/batch/{bad}/results/pi-1").status_code in (404, 422)
