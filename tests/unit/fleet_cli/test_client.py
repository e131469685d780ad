"""The client against the fake server, and against servers that misbehave."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from regatta_fleet.calling import Refused, Unreachable
from regatta_fleet.client import FleetClient
from regatta_fleet.schemas import RolloutRequest, TokenRequest
from regatta_fleet.testing import FakeFleet
from regatta_fleet.testing_app import fake_app, serve
from regatta_protocol.errors import Rejected, Retryable, StorageFull, TooLarge
from regatta_protocol.ids import DeviceId, ModelName, ModelRef, digest_of_bytes
from regatta_protocol.manifest import FileRef
from sample_fleet import harbor

Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


@pytest.fixture
def fleet() -> FakeFleet:
    return harbor()


@pytest.fixture
def client(fleet: FakeFleet) -> Iterator[FleetClient]:
    with serve(fake_app(fleet)) as url, FleetClient(url, fleet.token) as found:
        yield found


@contextmanager
def misbehaving(*answers: Answer) -> Iterator[tuple[str, list[str]]]:
    """Serve the answers one after another, the last one for ever; yields address and the requests seen."""
    seen: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def handle_one(self) -> None:
            seen.append(f"{self.command} {self.path}")
            answers[min(len(seen), len(answers)) - 1](self)

        do_GET = do_POST = do_HEAD = do_PUT = handle_one

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", seen
    finally:
        server.shutdown()
        server.server_close()


def answer(code: int, body: bytes = b"", **headers: str) -> Answer:
    def send(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        request.wfile.write(body)

    return send


def impatient(url: str, pauses: list[float] | None = None) -> FleetClient:
    return FleetClient(url, "t", timeout_s=2.0, jitter=lambda: 1.0, sleep=(pauses if pauses is not None else []).append)


def test_reads_the_fleet(client: FleetClient) -> None:
    """Status, devices, models, rollouts and events come typed."""
    status = client.status()

    assert status.fleet == "harbor"
    assert {device.id for device in client.devices()} == {"quay-1", "quay-2", "buoy-1", "crane-1", "gate-1"}
    assert client.device(DeviceId("quay-1")).races[0].placement == "litert/int8-pruned/xnnpack/t2"
    assert [rollout.id for rollout in client.rollouts()] == ["r-1", "r-2", "r-3"]
    assert client.models()[0].name == "digits"
    assert client.model(ModelName("digits")).devices_serving == 4
    assert len(client.events()) == 5
    assert client.events(since=client.events()[-2].at)[-1] == client.events()[-1]


def test_changes_the_fleet(client: FleetClient, fleet: FakeFleet) -> None:
    """Tokens, rollouts and revocations reach the server."""
    token = client.create_token(TokenRequest(group="lab", valid_s=60))
    client.revoke(DeviceId("buoy-1"))

    assert token.token
    assert fleet.tokens[0].group == "lab"
    assert fleet.devices["buoy-1"].revoked


def test_blobs_are_sent_whole_once(client: FleetClient, fleet: FakeFleet, tmp_path: Path) -> None:
    """A file is known after its upload; each of its bytes was counted for the progress."""
    data = bytes(range(256)) * 1000
    path = tmp_path / "blob"
    path.write_bytes(data)
    ref = FileRef(digest=digest_of_bytes(data), size_bytes=len(data))
    counted: list[int] = []

    assert not client.has_blob(ref.digest)
    client.upload_blob(ref, path, counted.append)

    assert client.has_blob(ref.digest)
    assert fleet.blobs[ref.digest] == data
    assert sum(counted) == len(data)


def test_an_empty_blob_can_be_sent(client: FleetClient, fleet: FakeFleet, tmp_path: Path) -> None:
    """Length 0 is a length."""
    path = tmp_path / "empty"
    path.touch()
    ref = FileRef(digest=digest_of_bytes(b""), size_bytes=0)

    client.upload_blob(ref, path)

    assert fleet.blobs[ref.digest] == b""


def test_a_blob_that_changed_meanwhile_is_refused(client: FleetClient, tmp_path: Path) -> None:
    """The server checks the digest, the client the length."""
    path = tmp_path / "blob"
    path.write_bytes(b"other")

    with pytest.raises(Rejected, match="another digest"):
        client.upload_blob(FileRef(digest=digest_of_bytes(b"right"), size_bytes=5), path)
    with pytest.raises(Rejected, match="shorter while it was sent"):
        client.upload_blob(FileRef(digest=digest_of_bytes(b"right"), size_bytes=50), path)


def test_unknown_things_are_rejected_with_the_servers_words(client: FleetClient) -> None:
    """The Problem's error and hint become the message."""
    with pytest.raises(Rejected, match="there is no device nobody: `regatta device list`"):
        client.device(DeviceId("nobody"))
    with pytest.raises(Rejected, match="no model digits9"):
        client.version(ModelRef(ModelName("digits9"), 1))
    with pytest.raises(Rejected, match="no rollout"):
        client.rollout("nope")
    with pytest.raises(Rejected, match="status 404"):
        client.rollout("../status")  # quoted: one segment
    with pytest.raises(Rejected):
        client.start_rollout(RolloutRequest(model=ModelName("digits"), version=9))


def test_a_wrong_token_is_refused(fleet: FakeFleet) -> None:
    """401 is its own error with its own exit code; the token is in no message."""
    with serve(fake_app(fleet)) as url, FleetClient(url, "wrong-secret") as client, pytest.raises(Refused) as caught:
        client.status()

    assert caught.value.exit_code == 77
    assert "wrong-secret" not in str(caught.value)


def test_no_server_is_retried_and_then_told() -> None:
    """A refused connection is tried four times with growing pauses; the message says how to start a server."""
    with misbehaving(answer(200)) as (url, _):
        pass  # the port is free again
    pauses: list[float] = []

    with pytest.raises(Unreachable, match=r"Connection refused.*regatta up"):
        impatient(url, pauses).status()

    assert pauses == pytest.approx([0.1, 0.2, 0.4])


def test_a_busy_server_is_asked_again() -> None:
    """503 and a broken connection are passed over for reads."""
    good = b'{"name": "digits", "versions": [1], "devices_serving": 0}'

    def hang_up(request: http.server.BaseHTTPRequestHandler) -> None:
        request.close_connection = True

    with misbehaving(answer(503), hang_up, answer(200, good)) as (url, seen):
        found = impatient(url).model(ModelName("digits"))

    assert found.versions == (1,)
    assert len(seen) == 3


def test_a_change_is_not_repeated() -> None:
    """A POST whose answer was lost may have been carried out: it is not sent twice."""
    with misbehaving(answer(503)) as (url, seen), pytest.raises(Retryable):
        impatient(url).create_token(TokenRequest())

    assert seen == ["POST /api/v1/tokens"]


@pytest.mark.parametrize(
    ("code", "error"),
    [(400, Rejected), (409, Rejected), (413, TooLarge), (429, Retryable), (500, Retryable), (507, StorageFull)],
)
def test_each_status_is_of_a_family(code: int, error: type[Exception]) -> None:
    """What the caller does about it follows from the status, with or without a Problem in the body."""
    for body in (b'{"error": "full", "hint": "free some"}', b"<html>", b""):
        with misbehaving(answer(code, body)) as (url, _), pytest.raises(error):
            impatient(url).create_token(TokenRequest())


def test_redirects_are_not_followed() -> None:
    """The token goes to the named server only."""
    with misbehaving(answer(302, Location="http://127.0.0.1:9/")) as (url, seen), pytest.raises(Rejected, match="302"):
        impatient(url).status()

    assert len(seen) == 1


@pytest.mark.parametrize("body", [b"", b"hello", b"[]", b'{"fleet": 3}', b"[" * 100_000])
def test_nonsense_is_not_understood(body: bytes) -> None:
    """An answer of another program is an error of ours, and says so."""
    with misbehaving(answer(200, body)) as (url, _), pytest.raises(Rejected, match="is this a Regatta server"):
        impatient(url).status()


def test_endless_answers_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer can fill the memory."""
    monkeypatch.setattr("regatta_fleet.calling._MAX_ANSWER_BYTES", 100_000)

    with misbehaving(answer(200, b" " * 200_000)) as (url, _), pytest.raises(TooLarge):
        impatient(url).status()


def test_what_is_no_address_is_rejected() -> None:
    """A typing error in --url is not retried."""
    for url in ("localhost:8090", "localhost", "http://", "ftp://x/"):
        with pytest.raises(Rejected, match="no server's address"):
            impatient(url).status()
