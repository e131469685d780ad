"""gRPC's bounds and life: deadlines, full queues, tokens, slow and many clients, draining, swaps, a missing extra."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from certificate import write_certificate
from gated_backend import GATED_WORKER, gate_of
from polling import wait_until
from regatta_agent.serving.spec import ServeLimits, ServeSpec
from regatta_protocol.ids import ModelName
from serving_process import ServingProcess, raw_exchange, serving, tiny_spec

grpc: Any = pytest.importorskip("grpc", reason="the extra grpc is not installed")
service_pb2: Any = pytest.importorskip(
    "tritonclient.grpc.service_pb2", reason="tritonclient[grpc] of the dev extra is not installed"
)
service_pb2_grpc: Any = pytest.importorskip("tritonclient.grpc.service_pb2_grpc")

pytestmark = pytest.mark.system

TOKEN = "a-token-of-some-length"
INFER = "/inference.GRPCInferenceService/ModelInfer"
_WITHOUT_GRPC = (
    "import os, sys; sys.modules['grpc'] = None; from regatta_agent.serving.worker import main;"
    "os._exit(main(sys.argv[1:], 0))"
)


def _message(model: str = "slow", **parameters: int) -> Any:
    """Return a request of four zeros, or for the tiny model of 64."""
    shape = [1, 4] if model == "slow" else [1, 8, 8, 1]
    tensor = {"name": "in" if model == "slow" else "image", "datatype": "FP32", "shape": shape}
    contents = [np.zeros(shape, np.float32).tobytes()]
    message = service_pb2.ModelInferRequest(model_name=model, inputs=[tensor], raw_input_contents=contents)
    for name, value in parameters.items():
        message.parameters[name].int64_param = value
    return message


def _gated(folder: Path, **limits: Any) -> ServingProcess:
    """Return a worker that computes only while its gate is open, which it is; it says when it is ready."""
    model = folder / "m"
    model.touch()
    gate_of(model).touch()
    spec = ServeSpec(
        model=ModelName("slow"),
        version=1,
        candidate_id="gated/v/none/t1",
        variant_path=model,
        socket_path=folder / "slow.sock",
        grpc_path=folder / "slow.grpc",
        limits=ServeLimits(drain_quiet_s=0.1, **limits),
    )
    return ServingProcess(spec, folder, GATED_WORKER)


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingProcess]:
    """One with room for five requests."""
    worker = _gated(tmp_path_factory.mktemp("s"), queue_length=5, body_timeout_s=1.0)
    try:
        worker.ready()
        yield worker
    finally:
        worker.kill()


@pytest.fixture
def stub(slow: ServingProcess) -> Iterator[Any]:
    with grpc.insecure_channel(f"unix:{slow.spec.grpc_path}") as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


@contextlib.contextmanager
def _shut(worker: ServingProcess) -> Iterator[None]:
    """Let no inference end meanwhile."""
    gate = gate_of(worker.spec.variant_path)
    gate.unlink()
    try:
        yield
    finally:
        gate.touch()


def _metric(worker: ServingProcess, name: str, label: str = "") -> int:
    text = raw_exchange(worker.spec.socket_path, b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").decode()
    return int(next(line for line in text.splitlines() if line.startswith(name) and label in line).rpartition(" ")[2])


def _pending(worker: ServingProcess, count: int) -> None:
    wait_until(lambda: _metric(worker, "regatta_inference_pending_requests") == count, 10, f"{count} are pending", 0.01)


def test_deadlines_and_the_bound_of_the_queue(slow: ServingProcess, stub: Any) -> None:
    """A request whose own timeout or whose caller's deadline passes in the queue is not computed; one that finds the
    queue full is told when to come again; the others are answered."""
    computed = _metric(slow, "regatta_inference_batch_size_count")
    with _shut(slow):
        kept = [stub.ModelInfer.future(_message(), timeout=30)]
        _pending(slow, 1)
        kept.append(stub.ModelInfer.future(_message(), timeout=30))
        _pending(slow, 2)
        with pytest.raises(grpc.RpcError) as late:
            stub.ModelInfer(_message(timeout=1000), timeout=30)
        with pytest.raises(grpc.RpcError) as gone:
            stub.ModelInfer(_message(), timeout=0.2)
        _pending(slow, 2)
        kept += [stub.ModelInfer.future(_message(), timeout=30) for _ in range(3)]
        _pending(slow, 5)
        with pytest.raises(grpc.RpcError) as full:
            stub.ModelInfer(_message(), timeout=30)

    assert [one.result().outputs[0].name for one in kept] == ["out"] * 5
    assert [err.value.code().name for err in (late, gone)] == ["DEADLINE_EXCEEDED"] * 2
    assert "timeout of 1000 us" in late.value.details()
    assert full.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "5 requests wait already" in full.value.details()
    trailers = dict(full.value.trailing_metadata())
    assert int(trailers["grpc-retry-pushback-ms"]) == 1000 * int(trailers["retry-after"]) > 0
    assert _metric(slow, "regatta_inference_requests_total", 'outcome="expired"') == 2
    assert _metric(slow, "regatta_inference_requests_total", 'outcome="refused"') == 1
    assert _metric(slow, "regatta_inference_batch_size_count") == computed + 5


def test_a_message_that_does_not_come_is_given_up(slow: ServingProcess, stub: Any) -> None:
    """A caller that opens a call and sends nothing is told after the time that a body has, and nobody waits for it."""
    never = threading.Event()

    def nothing() -> Iterator[bytes]:
        never.wait(20)
        yield from ()

    with grpc.insecure_channel(f"unix:{slow.spec.grpc_path}") as channel:
        stalled = channel.stream_unary(INFER).future(nothing(), timeout=20)
        assert stub.ModelInfer(_message(), timeout=20).outputs[0].name == "out"
        error = stalled.exception(timeout=20)
        never.set()

    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "not complete after 1 s" in error.details()


def test_connections_are_bounded(tmp_path: Path) -> None:
    """More are closed at once, and the one that is there is served."""
    spec = tiny_spec(tmp_path, grpc_path=tmp_path / "1.grpc", limits=ServeLimits(connections=3))
    with contextlib.ExitStack() as stack:
        stack.enter_context(serving(spec, tmp_path))
        channel = stack.enter_context(grpc.insecure_channel(f"unix:{spec.grpc_path}"))
        ask = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
        ask(_message("tiny"), timeout=20)
        others = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(5)]
        for one in others:
            one.settimeout(10)
            one.connect(str(spec.grpc_path))

        closed = [_is_closed(one) for one in others]

        assert sum(closed) == 3
        ask(_message("tiny"), timeout=20)


def _is_closed(connection: socket.socket) -> bool:
    """Return whether the server ends the connection rather than to begin HTTP/2 on it."""
    try:
        return connection.recv(9) == b""
    except ConnectionResetError:
        return True


def test_bytes_that_wait_are_bounded(tmp_path: Path) -> None:
    """Of many great messages at once the worker holds eight, and refuses the others for now."""
    limit = 8 << 20
    worker = _gated(tmp_path, queue_length=64, body_bytes=limit)
    with contextlib.ExitStack() as stack:
        stack.callback(worker.kill)
        worker.ready()
        before_kb = _peak_kb(worker)
        options = [("grpc.max_send_message_length", -1)]
        channel = stack.enter_context(grpc.insecure_channel(f"unix:{worker.spec.grpc_path}", options=options))
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        message = _message()
        message.raw_input_contents[0] = bytes(limit - 4096)
        message.inputs[0].shape[1] = (limit - 4096) // 4  # which is found to be wrong when its turn comes
        with _shut(worker):
            first = stub.ModelInfer.future(_message(), timeout=60)
            _pending(worker, 1)
            calls = [stub.ModelInfer.future(message, timeout=60) for _ in range(20)]
            wait_until(lambda: sum(call.done() for call in calls) >= 12, 30, "those beyond eight are refused")
            held = [call for call in calls if not call.done()]
            grown_kb = _peak_kb(worker) - before_kb
        codes = [call.code() for call in calls]
        assert first.code() is grpc.StatusCode.OK

    assert len(held) == 8
    assert codes.count(grpc.StatusCode.UNAVAILABLE) == 12
    assert codes.count(grpc.StatusCode.INVALID_ARGUMENT) == 8
    # Eight wait, eight are in grpcio's memory and in Python's, one is copied as it is read; the rest: the allocator.
    assert grown_kb < (8 + 2 * 8 + 4 + 4) * limit // 1024


def _peak_kb(worker: ServingProcess) -> int:
    lines = Path(f"/proc/{worker.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def test_beyond_loopback_only_with_tls_and_the_token(tmp_path: Path) -> None:
    """Without both the worker refuses to start; with them a call without the token is refused."""
    tls, token = write_certificate(tmp_path), tmp_path / "token"
    token.write_text(TOKEN)
    where = {"grpc_path": tmp_path / "g", "grpc_tcp": "0.0.0.0:0", "tls": tls}
    bare = ServingProcess(tiny_spec(tmp_path, 1, **where), tmp_path)
    assert "token_file" in bare.failed().reason
    bare.kill()
    worker = ServingProcess(tiny_spec(tmp_path, 2, **where, token_path=token), tmp_path)
    with contextlib.ExitStack() as stack:
        stack.callback(worker.kill)
        port = (worker.ready().grpc or "").rpartition(":")[2]
        trusted = grpc.ssl_channel_credentials(tls.certificate.read_bytes())
        channel = stack.enter_context(grpc.secure_channel(f"127.0.0.1:{port}", trusted))
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)

        codes = []
        for value in (None, "Bearer wrong", f"Bearer {TOKEN}"):
            metadata = () if value is None else (("authorization", value),)
            codes.append(stub.ModelInfer.future(_message("tiny"), metadata=metadata, timeout=20).code())

    assert codes == [grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.OK]


def test_what_is_under_way_is_answered_in_a_drain(tmp_path: Path) -> None:
    """A request that waits when the worker is told to leave gets its answer, an idle stream its end."""
    worker = _gated(tmp_path)
    with contextlib.ExitStack() as stack:
        stack.callback(worker.kill)
        worker.ready()
        channel = stack.enter_context(grpc.insecure_channel(f"unix:{worker.spec.grpc_path}"))
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        asked: list[Any] = [_message()]
        more = threading.Event()
        stack.callback(more.set)

        def requests() -> Iterator[Any]:
            yield asked.pop()
            more.wait(30)

        with _shut(worker):  # the first is seen to be slow, so that the loop waits for no later one
            stream = stub.ModelStreamInfer(requests(), timeout=30)
            _pending(worker, 1)
        assert next(stream).infer_response.outputs[0].name == "out"
        with _shut(worker):
            waiting = stub.ModelInfer.future(_message(), timeout=30)
            _pending(worker, 1)
            drained = stack.enter_context(ThreadPoolExecutor(1)).submit(worker.drain)
            with pytest.raises(grpc.RpcError) as ended:
                next(stream)
        assert waiting.result().outputs[0].name == "out"
        assert sum(window.requests for window in drained.result(30)) == 2

    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
    assert not (tmp_path / "slow.grpc").exists()


def test_a_swap_moves_the_port_to_the_next_worker(tmp_path: Path) -> None:
    """Two workers share a TCP port: the one that the link leads to has it, before and after it moves."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = "{}:{}".format(*probe.getsockname())
    link = tmp_path / "tiny.sock"
    link.symlink_to("1.sock")

    def spec(version: int) -> ServeSpec:
        path = tmp_path / f"{version}.grpc"
        return tiny_spec(tmp_path, version, grpc_path=path, grpc_tcp=address, link_path=link)

    with serving(spec(1), tmp_path) as old, serving(spec(2), tmp_path):
        wait_until(lambda: _version(address) == "1", 20, "the first has the port")
        fresh = tmp_path / "fresh"
        fresh.symlink_to("2.sock")
        fresh.replace(link)
        wait_until(lambda: _version(address) == "2", 20, "the second has it too")
        old.drain()

        assert {_version(address) for _ in range(5)} == {"2"}


def _version(address: str) -> str:
    """Return the version that answers on a new connection, or why there is none."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(address, options=options) as channel:
        ask = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelMetadata
        call = ask.future(service_pb2.ModelMetadataRequest(name="tiny"), timeout=20)
        return str(call.code()) if call.exception() is not None else str(call.result().versions[0])


def test_without_the_extra_the_worker_says_what_to_install(tmp_path: Path) -> None:
    """A worker that cannot load grpcio fails with the command that installs it."""
    spec = tiny_spec(tmp_path, grpc_path=tmp_path / "1.grpc")
    worker = ServingProcess(spec, tmp_path, ("-c", _WITHOUT_GRPC))
    try:
        failed = worker.failed()
    finally:
        worker.kill()

    assert failed.family == "misuse"
    assert "pip install 'regatta-edge[grpc]'" in failed.reason


def test_a_taken_address_is_an_error(tmp_path: Path) -> None:
    """Of the worker's own port, and of its socket."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = "{}:{}".format(*taken.getsockname())
        worker = ServingProcess(tiny_spec(tmp_path, grpc_path=tmp_path / "1.grpc", grpc_tcp=address), tmp_path)
        try:
            assert f"cannot listen on {address}" in worker.failed().reason
        finally:
            worker.kill()
