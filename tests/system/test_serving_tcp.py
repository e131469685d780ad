"""TCP of the worker: behind TLS and a token beyond loopback, and shared by the workers of a model through a swap."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import ssl
from pathlib import Path

import numpy as np
import pytest

from certificate import write_certificate
from polling import wait_until
from regatta_agent.client import AsyncClient, Client
from regatta_agent.serving.tcp import TcpListeners
from regatta_agent.serving.tensors import Array
from regatta_protocol.errors import Misuse, Rejected
from regatta_protocol.ids import ModelName
from serving_process import ServingProcess, serving, tiny_spec

pytestmark = pytest.mark.system

TOKEN = "a-token-of-some-length"


def test_beyond_loopback_only_with_tls_and_the_token(tmp_path: Path) -> None:
    """Without both the worker refuses to start; with them a request without the token is 401, before its body."""
    tls, token = write_certificate(tmp_path), tmp_path / "token"
    token.write_text(TOKEN)
    bare = ServingProcess(tiny_spec(tmp_path, 1, tcp="0.0.0.0:0", tls=tls), tmp_path)
    assert "token_file" in bare.failed().reason
    bare.kill()
    worker = ServingProcess(tiny_spec(tmp_path, 2, tcp="0.0.0.0:0", tls=tls, token_path=token), tmp_path)
    try:
        port = int((worker.ready().tcp or "").rpartition(":")[2])
        context = ssl.create_default_context(cafile=str(tls.certificate))

        statuses = []
        for value in (None, "Bearer wrong", f"Bearer {TOKEN}"):
            connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=10, context=context)
            connection.request("GET", "/v2/health/ready", headers={} if value is None else {"Authorization": value})
            statuses.append(connection.getresponse().status)
            connection.close()

        address, image = f"https://127.0.0.1:{port}", np.zeros((1, 8, 8, 1), dtype=np.float32)
        with Client(address, token=TOKEN, ca=tls.certificate) as client:
            by_thread = client.infer("tiny", image)["scores"]
            client.infer_stacked("tiny", np.zeros((400, 8, 8, 1), dtype=np.float32))  # longer than one piece
        by_task = asyncio.run(_infer_once(AsyncClient(address, token=TOKEN, ca=tls.certificate), image))
        with pytest.raises(Misuse, match="give its ca"):
            Client(address, token=TOKEN).is_ready("tiny")
        with pytest.raises(Misuse, match="in the clear"):
            Client(f"http://127.0.0.1:{port}", token=TOKEN)
        with pytest.raises(Rejected):
            Client(address, token="another-token-of-length", ca=tls.certificate).metadata("tiny")
    finally:
        worker.kill()

    assert statuses == [401, 401, 200]
    np.testing.assert_array_equal(by_thread, by_task)


async def _infer_once(client: AsyncClient, image: Array) -> Array:
    async with client:
        return (await client.infer("tiny", image))["scores"]


def test_no_connection_is_refused_in_a_swap(tmp_path: Path) -> None:
    """Two workers share the agent's listener: connections go to the one that the link leads to, before and after it
    moves, and wait in between when neither accepts."""
    address = _free_address()
    listeners = TcpListeners({ModelName("tiny"): address})
    fd = listeners.fd_of(ModelName("tiny"))
    assert fd is not None
    assert listeners.fd_of(ModelName("tiny")) == fd
    link = tmp_path / "tiny.sock"
    try:
        with serving(tiny_spec(tmp_path, 1, tcp_fd=fd, link_path=link), tmp_path, (fd,)) as old:
            link.symlink_to("1.sock")
            assert _version(address) == "1"
            with serving(tiny_spec(tmp_path, 2, tcp_fd=fd, link_path=link), tmp_path, (fd,)):
                assert _version(address) == "1"
                fresh = tmp_path / "fresh"
                fresh.symlink_to("2.sock")
                fresh.replace(link)
                seen = [_version(address) for _ in range(20)]
                wait_until(lambda: _version(address) == "2" and _version(address) == "2", 10, "the new one answers")
                old.drain()

                assert set(seen) <= {"1", "2"}
                assert {_version(address) for _ in range(5)} == {"2"}
    finally:
        listeners.close()


def _free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return "{}:{}".format(*probe.getsockname())


def _version(address: str) -> str:
    """Return the version that answers a new connection."""
    connection = http.client.HTTPConnection(address, timeout=10)
    try:
        connection.request("GET", "/v2/models/tiny")
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status == 200, body
        return str(json.loads(body)["versions"][0])
    finally:
        connection.close()
