"""A small HTTPS server that enrols devices as the fleet does, with faults to order, for tests."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from regatta_protocol.codec import decode
from regatta_protocol.errors import Rejected
from regatta_protocol.ids import DeviceId
from regatta_provisioning.assignments import AssignmentKey
from regatta_provisioning.authority import Authority
from regatta_provisioning.enrollment import CA_PATH, ENROLL_PATH, EnrollRequest, EnrollResponse, Refusal
from regatta_provisioning.repository import MetadataRepository
from regatta_provisioning.tokens import mint_token, new_secret, token_hash

Answer = tuple[int, bytes]


class EnrollingServer:
    """Serves until `stop`. `answers` replaces what a path would answer: path -> (status, body)."""

    def __init__(self, folder: Path, *, hosts: tuple[str, ...] = ("localhost", "127.0.0.1")) -> None:
        self.authority = Authority.create(folder / "authority", "lab")
        self.root_json = MetadataRepository.create(folder / "signed").root_json
        self.assignment_key = AssignmentKey.create(folder / "keys")
        self.secrets: dict[str, bytes | None] = {}  # hash -> public key that used it
        self.requests: list[EnrollRequest] = []
        self.answers: dict[str, Answer] = {}
        self.change: Callable[[EnrollResponse], EnrollResponse] = lambda response: response
        key_path, certificate_path = self.authority.issue_server(folder / "tls", "api", hosts)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate_path, key_path)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def token(self, host: str = "127.0.0.1", fingerprint: str | None = None, port: int | None = None) -> str:
        secret = new_secret()
        self.secrets[token_hash(secret)] = None
        return mint_token(f"https://{host}:{port or self.port}", fingerprint or self.authority.fingerprint, secret)

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def enroll(self, body: bytes) -> Answer:
        request = decode(EnrollRequest, body)
        self.requests.append(request)
        hashed = token_hash(request.secret)
        if hashed not in self.secrets:
            return 403, _refusal("this token is not known")
        key = _public_key(request.csr_pem)
        used_by = self.secrets[hashed]
        if used_by is not None and used_by != key:
            return 409, _refusal("this token was used already", "make a new one with `regatta device token`")
        device = request.device or DeviceId("device-1")
        try:
            certificate = self.authority.sign_device_csr(request.csr_pem, device)
        except Rejected as err:
            return 400, _refusal(str(err))
        self.secrets[hashed] = key
        response = EnrollResponse(
            fleet="lab",
            device=device,
            certificate_pem=certificate,
            ca_pem=self.authority.ca_pem,
            broker_host="127.0.0.1",
            broker_port=8883,
            root_json=self.root_json,
            assignment_key=self.assignment_key.public_key_b64,
            assignment_key_id=self.assignment_key.key_id,
        )
        return 201, self.change(response).model_dump_json().encode()


def _refusal(error: str, hint: str | None = None) -> bytes:
    return Refusal(error=error, hint=hint).model_dump_json(exclude_none=True).encode()


def _public_key(csr_pem: str) -> bytes:
    key = x509.load_pem_x509_csr(csr_pem.encode()).public_key()
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _handler(server: EnrollingServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            if self.path == CA_PATH:
                self._answer((200, server.authority.ca_pem.encode()))
            else:
                self._answer((404, b"{}"))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(server.enroll(body) if self.path == ENROLL_PATH else (404, b"{}"))

        def _answer(self, answer: Answer) -> None:
            status, body = server.answers.get(self.path, answer)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    return Handler
