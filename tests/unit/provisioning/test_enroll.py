"""Enrolment against a real HTTPS server: its refusals, and what a kill at any point leaves."""

from __future__ import annotations

import os
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from enrolling_server import EnrollingServer
from killing import every_kill, killed_at
from regatta_protocol.errors import Misuse, Rejected, Retryable, TooLarge, Untrusted
from regatta_protocol.ids import DeviceId
from regatta_protocol.measurement import BoardFacts
from regatta_provisioning.authority import Authority
from regatta_provisioning.enroll import enroll
from regatta_provisioning.enrollment import CA_PATH, ENROLL_PATH, RENEW_PATH, EnrollResponse, RenewResponse
from regatta_provisioning.identity import Identity, load_identity
from regatta_provisioning.keys import make_csr, read_ec_key
from regatta_provisioning.renewal import renew
from regatta_provisioning.tokens import mint_token, new_secret

PI = DeviceId("pi-1")
BOARD = BoardFacts(model="Raspberry Pi 5", cores=4)


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EnrollingServer]:
    server = EnrollingServer(tmp_path_factory.mktemp("fleet"))
    yield server
    server.stop()


@pytest.fixture
def server(shared_server: EnrollingServer) -> EnrollingServer:
    shared_server.requests.clear()
    shared_server.answers.clear()
    shared_server.change = lambda response: response
    return shared_server


def _enroll(token: str, folder: Path, device: DeviceId | None = PI, force: bool = False) -> Identity:
    return enroll(token, folder, device=device, board=BOARD, timeout_s=10, force=force)


def _nothing_sent_or_kept(server: EnrollingServer, folder: Path) -> None:
    assert server.requests == []
    with pytest.raises(Misuse, match="not enrolled"):
        load_identity(folder)


def test_a_device_enrols_with_a_token_alone(server: EnrollingServer, tmp_path: Path) -> None:
    folder = tmp_path / "state" / "identity"

    identity = _enroll(server.token(), folder)

    assert identity == load_identity(folder)
    assert (identity.fleet, identity.device, identity.broker_port) == ("lab", PI, 8883)
    certificate = x509.load_pem_x509_certificate(identity.certificate_path.read_bytes())
    assert certificate.public_key() == read_ec_key(identity.key_path).public_key()
    assert certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == PI
    assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)
    assert identity.root_path.read_text() == server.root_json
    assert server.requests[0].board == BOARD
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


def test_the_key_never_leaves_the_device(server: EnrollingServer, tmp_path: Path) -> None:
    identity = _enroll(server.token(), tmp_path / "identity")

    said = server.requests[0].model_dump_json()
    assert "PRIVATE" not in said
    assert identity.key_path.read_text().splitlines()[1] not in said


def test_the_fleet_may_choose_the_name(server: EnrollingServer, tmp_path: Path) -> None:
    assert _enroll(server.token(), tmp_path / "identity", device=None).device == "device-1"


def test_python_ssl_takes_the_identity(server: EnrollingServer, tmp_path: Path) -> None:
    identity = _enroll(server.token(), tmp_path / "identity")
    context = ssl.create_default_context(cafile=str(identity.ca_path))
    context.load_cert_chain(identity.certificate_path, identity.key_path)

    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as secured,
    ):
        assert secured.version() in ("TLSv1.2", "TLSv1.3")


def test_another_fleets_server_is_told_apart_before_anything_is_sent(server: EnrollingServer, tmp_path: Path) -> None:
    with pytest.raises(Untrusted, match=r"not the fleet that made this token.*nothing was sent"):
        _enroll(server.token(fingerprint="ab" * 32), tmp_path)

    _nothing_sent_or_kept(server, tmp_path)


def test_a_man_in_the_middle_with_the_right_ca_text_is_refused(server: EnrollingServer, tmp_path: Path) -> None:
    """The CA is public: who repeats it, but has no certificate of it, gets no secret."""
    real = Authority.create(tmp_path / "real", "lab")
    server.answers[CA_PATH] = (200, real.ca_pem.encode())

    with pytest.raises(Untrusted, match="does not prove to be the fleet's server"):
        _enroll(server.token(fingerprint=real.fingerprint), tmp_path / "identity")

    _nothing_sent_or_kept(server, tmp_path / "identity")


def test_a_certificate_for_another_host_is_refused(tmp_path: Path) -> None:
    server = EnrollingServer(tmp_path / "fleet", hosts=("fleet.example",))
    try:
        with pytest.raises(Untrusted, match="does not name this address"):
            _enroll(server.token(), tmp_path / "identity")
        _nothing_sent_or_kept(server, tmp_path / "identity")
    finally:
        server.stop()


def test_a_used_token_shows_what_the_server_says(server: EnrollingServer, tmp_path: Path) -> None:
    token = server.token()
    _enroll(token, tmp_path / "first")

    with pytest.raises(Rejected, match=r"status 409.*used already \(make a new one"):
        _enroll(token, tmp_path / "second", DeviceId("pi-2"))
    with pytest.raises(Misuse, match="not enrolled"):
        load_identity(tmp_path / "second")


def test_an_unknown_token_is_refused(server: EnrollingServer, tmp_path: Path) -> None:
    token = mint_token(f"https://127.0.0.1:{server.port}", server.authority.fingerprint, new_secret())

    with pytest.raises(Rejected, match=r"status 403.*this token is not known"):
        _enroll(token, tmp_path)


def test_a_server_that_is_not_there_can_be_tried_again(server: EnrollingServer, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"https://127.0.0.1:{taken.getsockname()[1]}"
        token = mint_token(url, server.authority.fingerprint, new_secret())

        with pytest.raises(Retryable, match="is the server up"):
            _enroll(token, tmp_path)


def test_a_silent_server_is_given_up(server: EnrollingServer, tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        token = mint_token(f"https://127.0.0.1:{silent.getsockname()[1]}", "ab" * 32, new_secret())

        with pytest.raises(Retryable, match="no answer"):
            enroll(token, tmp_path, device=PI, board=BOARD, timeout_s=0.3)


@pytest.mark.parametrize(
    ("path", "status", "body", "kind", "words"),
    [
        (CA_PATH, 200, b"<html>Welcome to our hotel</html>", Retryable, "captive portal"),
        (CA_PATH, 302, b"", Retryable, "captive portal"),
        (CA_PATH, 200, b"x" * 200_000, TooLarge, "more than 131072 bytes"),
        (ENROLL_PATH, 503, b"{}", Retryable, "cannot enrol now"),
        (ENROLL_PATH, 429, b'{"error": "too many at once"}', Retryable, "too many at once"),
        (ENROLL_PATH, 404, b"<html>", Rejected, "gave no reason"),
        (ENROLL_PATH, 200, b"{}", Rejected, "update it"),
        (ENROLL_PATH, 200, b"x" * 200_000, TooLarge, "more than 131072 bytes"),
    ],
)
def test_odd_answers_are_said_in_plain_words(
    server: EnrollingServer, tmp_path: Path, path: str, status: int, body: bytes, kind: type[Exception], words: str
) -> None:
    server.answers[path] = (status, body)

    with pytest.raises(kind, match=words):
        _enroll(server.token(), tmp_path)
    with pytest.raises(Misuse, match="not enrolled"):
        load_identity(tmp_path)


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("certificate_pem", "another key|damaged"),
        ("ca_pem", "damaged|another CA"),
        ("root_json", "damaged"),
        ("assignment_key", "damaged|instead of 32"),
        ("device", "not for pi-9"),
    ],
)
def test_an_answer_that_would_not_work_later_is_refused_now(
    server: EnrollingServer, tmp_path: Path, field: str, words: str
) -> None:
    other = Authority.create(tmp_path / "other", "lab")
    wrong = {
        "certificate_pem": Path(server.authority.issue_client()[1]).read_text(),
        "ca_pem": other.ca_pem,
        "root_json": server.root_json.replace("1", "2"),
        "assignment_key": "AAAA",
        "device": "pi-9",
    }

    def change(response: EnrollResponse) -> EnrollResponse:
        return response.model_copy(update={field: wrong[field]})

    server.change = change
    with pytest.raises(Rejected, match=words):
        _enroll(server.token(), tmp_path / "identity")
    with pytest.raises(Misuse, match="not enrolled"):
        load_identity(tmp_path / "identity")


def test_a_certificate_that_another_authority_signed_is_refused(server: EnrollingServer, tmp_path: Path) -> None:
    """The broker would refuse it for ever."""
    other = Authority.create(tmp_path / "other", "lab")

    def change(response: EnrollResponse) -> EnrollResponse:
        foreign = other.sign_device_csr(server.requests[-1].csr_pem, response.device)
        return response.model_copy(update={"certificate_pem": foreign})

    server.change = change
    with pytest.raises(Rejected, match="damaged certificate"):
        _enroll(server.token(), tmp_path / "identity")


def test_an_identity_is_replaced_only_when_asked(server: EnrollingServer, tmp_path: Path) -> None:
    first = _enroll(server.token(), tmp_path)

    with pytest.raises(Misuse, match=r"already enrolled, as pi-1 of fleet 'lab': add --force"):
        _enroll(server.token(), tmp_path)
    assert load_identity(tmp_path) == first
    second = _enroll(server.token(), tmp_path, DeviceId("pi-2"), force=True)
    assert second.device == "pi-2"
    assert second.key_path != first.key_path
    assert len(list(tmp_path.iterdir())) == 6, "the old identity's files are gone"


def test_a_failed_replacement_leaves_the_identity(server: EnrollingServer, tmp_path: Path) -> None:
    first = _enroll(server.token(), tmp_path)
    server.answers[ENROLL_PATH] = (403, b'{"error": "no"}')

    with pytest.raises(Rejected):
        _enroll(server.token(), tmp_path, force=True)

    assert load_identity(tmp_path) == first
    assert first.key_path.is_file()


@pytest.mark.parametrize("before", [False, True])
def test_a_kill_at_any_point_is_survived_with_the_same_token(
    server: EnrollingServer, tmp_path: Path, before: bool
) -> None:
    """Not enrolled (or still the old one) or wholly enrolled; and the same command ends well, with the same key."""

    def run(point: int) -> None:
        folder, token = tmp_path / f"{before}-{point}", server.token()
        old = _enroll(server.token(), folder, DeviceId("old")) if before else None
        try:
            with killed_at(point):
                _enroll(token, folder, force=before)
        finally:
            try:
                now: Identity | None = load_identity(folder)
            except Misuse as err:
                assert "not enrolled" in str(err)
                now = None
            assert now == old or (now is not None and now.device == PI)
            again = _enroll(token, folder, force=True)
            assert again.device == PI
            assert read_ec_key(again.key_path)
            assert [path.name for path in folder.iterdir() if path.suffix == ".pem"].count(again.key_path.name) == 1

    assert every_kill(run) >= 10


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_root_leaves_files_that_the_service_can_read(server: EnrollingServer, tmp_path: Path) -> None:
    """At enrolment, and when root renews the certificate by hand: else the next connection would be the last."""
    state = tmp_path / "state"
    state.mkdir()
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == 0 and str(parent).startswith("/tmp/"):
            parent.chmod(0o711)
    os.chown(state, 4321, 4322)

    identity = _enroll(server.token(), state / "identity")
    fresh = server.authority.sign_device_csr(make_csr(read_ec_key(identity.key_path), PI), PI)
    server.answers[RENEW_PATH] = (200, RenewResponse(certificate_pem=fresh).model_dump_json().encode())
    assert renew(state / "identity", now=time.time(), force=True)

    assert identity.certificate_path.read_text() == fresh
    owners = {
        (path.stat().st_uid, path.stat().st_gid) for path in (state / "identity", *(state / "identity").iterdir())
    }
    assert owners == {(4321, 4322)}
    assert os.geteuid() == 0


def test_a_folder_that_takes_nothing_is_said(server: EnrollingServer, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(Misuse, match="cannot be kept"):
        _enroll(server.token(), tmp_path / "file" / "identity")
