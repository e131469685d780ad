"""gRPC as a client sees it that nobody here wrote, NVIDIA's `tritonclient[grpc]`, beside the same client over HTTP."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import queue
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from regatta_protocol import __version__
from serving_process import ServingProcess, post, raw_exchange, serving, status_of, tiny_spec

grpc = pytest.importorskip("grpc", reason="the extra grpc is not installed")
by_http: Any = pytest.importorskip("tritonclient.http", reason="tritonclient[http] of the dev extra is not installed")
by_grpc: Any = pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] of the dev extra is not installed")
shared: Any = pytest.importorskip("tritonclient.utils.shared_memory")
utilities: Any = pytest.importorskip("tritonclient.utils")
service_pb2: Any = pytest.importorskip("tritonclient.grpc.service_pb2")
service_pb2_grpc: Any = pytest.importorskip("tritonclient.grpc.service_pb2_grpc")

pytestmark = pytest.mark.system

IMAGE = np.random.default_rng(5).random((1, 8, 8, 1), dtype=np.float32)
STATUSES = {"StatusCode.INVALID_ARGUMENT": "400", "StatusCode.NOT_FOUND": "404"}


class Served(NamedTuple):
    """A worker of the tiny model, version 3, and who asks it."""

    worker: ServingProcess
    http: Any
    grpc: Any
    stub: Any


@pytest.fixture(scope="module")
def collected() -> Iterator[None]:
    """Let the clients be freed on this thread: that of HTTP closes its gevent pool then, which belongs to it."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def served(collected: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("g")
    spec = tiny_spec(
        folder, 3, tcp="127.0.0.1:0", grpc_tcp="127.0.0.1:0", grpc_path=folder / "3.grpc", shared_memory=True
    )
    worker = ServingProcess(spec, folder)
    with contextlib.ExitStack() as stack:
        stack.callback(worker.kill)
        ready = worker.ready()
        http = stack.enter_context(by_http.InferenceServerClient(ready.tcp))
        client = stack.enter_context(by_grpc.InferenceServerClient(f"unix:{spec.grpc_path}"))
        channel = stack.enter_context(grpc.insecure_channel(ready.grpc))
        yield Served(worker, http, client, service_pb2_grpc.GRPCInferenceServiceStub(channel))


def _image(module: Any, array: np.ndarray[Any, Any] = IMAGE, name: str = "image") -> Any:
    entry = module.InferInput(name, list(array.shape), utilities.np_to_triton_dtype(array.dtype))
    entry.set_data_from_numpy(array)
    return entry


def _refused(ask: Callable[[], object]) -> tuple[str, str]:
    """Return the status, in HTTP's numbers, and the message of the client's exception."""
    with pytest.raises(utilities.InferenceServerException) as refused:
        ask()
    error: Any = refused.value
    return STATUSES.get(str(error.status()), str(error.status())), str(error.message())


def test_health_and_metadata(served: Served) -> None:
    """What HTTP says of the server and the model, gRPC says, and of what is not here."""
    client = served.grpc
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("tiny") and client.is_model_ready("tiny", "3")
    assert not client.is_model_ready("tiny", "2") and not client.is_model_ready("other")
    server = client.get_server_metadata(as_json=True)
    assert server == served.http.get_server_metadata()
    assert server["version"] == __version__
    theirs = served.http.get_model_metadata("tiny")
    for version in ("", "3"):
        model = client.get_model_metadata("tiny", version)
        assert (model.name, list(model.versions), model.platform) == ("tiny", ["3"], theirs["platform"])
        tensors = [(one.name, one.datatype, list(one.shape)) for one in (*model.inputs, *model.outputs)]
        assert tensors == [("image", "FP32", [1, 8, 8, 1]), ("scores", "FP32", [1, 10])]
    asked = [partial(one.get_model_metadata, "other") for one in (client, served.http)]
    assert _refused(asked[0]) == _refused(asked[1])


@pytest.mark.parametrize(
    ("image", "more"),
    [
        (IMAGE, {}),
        (IMAGE, {"request_id": "r-7", "priority": 1, "timeout": 60_000_000, "model_version": "3"}),
        (IMAGE, {"parameters": {"trace": "x", "number": 1, "flag": True}}),
        (IMAGE, {"outputs": {}}),
        (IMAGE, {"outputs": {"class_count": 3}}),
        (np.repeat(IMAGE, 5, axis=0), {"parameters": {"stacked": True}}),
        (IMAGE.astype(np.float64), {}),
    ],
)
def test_the_answer_is_that_of_http(served: Served, image: np.ndarray[Any, Any], more: dict[str, Any]) -> None:
    """The same tensors bit by bit, names, types, shapes, id and version."""
    answers = []
    for module, client in ((by_http, served.http), (by_grpc, served.grpc)):
        wish = more.get("outputs")
        outputs = None if wish is None else [module.InferRequestedOutput("scores", **wish)]
        answers.append(client.infer("tiny", [_image(module, image)], **{**more, "outputs": outputs}))

    over_http, over_grpc = answers[0].get_response(), answers[1].get_response()
    np.testing.assert_array_equal(answers[1].as_numpy("scores"), answers[0].as_numpy("scores"))
    assert over_grpc.id == over_http.get("id", "") == more.get("request_id", "")
    assert (over_grpc.model_name, over_grpc.model_version) == ("tiny", "3")
    (ours,), (theirs,) = over_grpc.outputs, over_http["outputs"]
    assert (ours.name, ours.datatype, list(ours.shape)) == (theirs["name"], theirs["datatype"], theirs["shape"])


@pytest.mark.parametrize(
    ("image", "name", "more"),
    [
        (IMAGE[:, :4], "image", {}),
        (IMAGE, "picture", {}),
        (IMAGE.astype(np.int32), "image", {}),
        (np.full_like(IMAGE, np.nan), "image", {}),
        (IMAGE, "image", {"outputs": "nothing"}),
        (IMAGE, "image", {"model_version": "2"}),
        (IMAGE, "image", {"model_name": "other"}),
        (IMAGE, "image", {"priority": 11}),
        (IMAGE, "image", {"parameters": {"processed": 1}}),
    ],
)
def test_the_error_is_that_of_http(
    served: Served, image: np.ndarray[Any, Any], name: str, more: dict[str, Any]
) -> None:
    """The same text with the status's counterpart, and counted alike."""
    found = []
    for module, client in ((by_http, served.http), (by_grpc, served.grpc)):
        outputs = [module.InferRequestedOutput(more["outputs"])] if "outputs" in more else None
        asked = {"model_name": "tiny", "inputs": [_image(module, image, name)], **more, "outputs": outputs}
        before = _failed(served)
        found.append((*_refused(partial(client.infer, **asked)), _failed(served) - before))

    assert found[1] == found[0]


def _failed(served: Served) -> int:
    (stats,) = served.http.get_inference_statistics("tiny")["model_stats"]
    return int(stats["inference_stats"]["fail"]["count"])


def test_typed_contents_are_answered_in_kind(served: Served) -> None:
    """Elements one by one in, elements one by one out, the numbers of raw contents; long ones too, which are refused
    for their shape and not for their form."""
    tensor = {"name": "image", "datatype": "FP32", "shape": list(IMAGE.shape)}
    typed = {**tensor, "contents": {"fp32_contents": IMAGE.ravel().tolist()}}

    answer = served.stub.ModelInfer(service_pb2.ModelInferRequest(model_name="tiny", inputs=[typed]))
    raw = served.stub.ModelInfer(
        service_pb2.ModelInferRequest(model_name="tiny", inputs=[tensor], raw_input_contents=[IMAGE.tobytes()])
    )

    assert not answer.raw_output_contents
    scores = np.array(answer.outputs[0].contents.fp32_contents, np.float32)
    np.testing.assert_array_equal(scores, np.frombuffer(raw.raw_output_contents[0], np.float32))
    long = {**tensor, "shape": [1, 10_000], "contents": {"fp32_contents": [0.5] * 10_000}}
    with pytest.raises(grpc.RpcError) as refused:
        served.stub.ModelInfer(service_pb2.ModelInferRequest(model_name="tiny", inputs=[long]))
    assert "[1, 8, 8, 1] and [1, 10000] came" in refused.value.details()


def test_statistics_and_feedback(served: Served) -> None:
    """What came over gRPC is counted with the rest, and feedback over HTTP finds it by its id."""
    before = served.grpc.get_inference_statistics("tiny").model_stats[0].inference_stats.success.count
    scores = served.grpc.infer("tiny", [_image(by_grpc)], request_id="judged").as_numpy("scores")

    (stats,) = served.grpc.get_inference_statistics().model_stats
    body = json.dumps({"id": "judged", "label": int(scores.argmax())}).encode()
    judged = raw_exchange(served.worker.spec.socket_path, post("/v2/models/tiny/feedback", body))

    assert (stats.name, stats.version, stats.inference_stats.success.count) == ("tiny", "3", before + 1)
    assert stats.inference_stats.compute_infer.ns > 0
    assert [(one.batch_size, one.compute_infer.count) for one in stats.batch_stats] == [(1, stats.execution_count)]
    assert (status_of(judged), judged.endswith(b'"correct":true}')) == (200, True)


def test_a_stream_goes_on_after_an_error(served: Served) -> None:
    """Requests are answered in their order; the error of one is its own."""
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client = served.grpc
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    for number, image in enumerate((IMAGE, IMAGE[:, :4], IMAGE)):
        client.async_stream_infer("tiny", [_image(by_grpc, image)], request_id=str(number))

    found = [answers.get(timeout=20) for _ in range(3)]
    client.stop_stream()

    assert [error is None for _, error in found] == [True, False, True]
    assert "[1, 8, 8, 1]" in found[1][1].message()
    assert [found[place][0].get_response().id for place in (0, 2)] == ["0", "2"]


@pytest.fixture
def region(served: Served) -> Iterator[tuple[str, Any]]:
    """A region of 1 KiB that the client's own tool makes, registered over gRPC as `r`."""
    key = f"/regatta-grpc-{os.getpid()}"
    handle = shared.create_shared_memory_region("r", key, 1024)
    served.grpc.register_system_shared_memory("r", key, 1024)
    yield key, handle
    served.grpc.unregister_system_shared_memory()
    shared.destroy_shared_memory_region(handle)


def test_tensors_go_through_shared_memory(served: Served, region: tuple[str, Any]) -> None:
    """Input and output in one region give the numbers that the socket gives; wrong regions are errors."""
    key, handle = region
    shared.set_shared_memory_region(handle, [IMAGE])
    entry = by_grpc.InferInput("image", list(IMAGE.shape), "FP32")
    entry.set_shared_memory("r", IMAGE.nbytes)
    wish = by_grpc.InferRequestedOutput("scores")
    wish.set_shared_memory("r", 40, offset=512)

    served.grpc.infer("tiny", [entry], outputs=[wish])

    found = shared.get_contents_as_numpy(handle, np.float32, [1, 10], offset=512)
    np.testing.assert_array_equal(found, served.grpc.infer("tiny", [_image(by_grpc)]).as_numpy("scores"))
    np.testing.assert_array_equal(found, served.grpc.infer("tiny", [entry]).as_numpy("scores"))
    status = served.grpc.get_system_shared_memory_status()
    assert {name: (one.key, one.byte_size) for name, one in status.regions.items()} == {"r": (key, 1024)}
    assert "already" in _refused(lambda: served.grpc.register_system_shared_memory("r", key, 1024))[1]
    assert "not registered" in _refused(lambda: served.grpc.get_system_shared_memory_status("q"))[1]
    entry.set_shared_memory("q", IMAGE.nbytes)
    assert "not registered" in _refused(lambda: served.grpc.infer("tiny", [entry]))[1]


def test_what_cannot_be_taken_is_refused_and_the_worker_goes_on(served: Served) -> None:
    """A message over the limit, one that is none, one that is compressed, and a method that is not here."""
    assert "RESOURCE_EXHAUSTED" in _refused(lambda: _infer(served, np.zeros((1, 8, 8, 140_000), np.float32)))[0]
    assert "UNIMPLEMENTED" in _refused(lambda: _infer(served, IMAGE, compression_algorithm="gzip"))[0]
    assert "UNIMPLEMENTED" in _refused(lambda: served.grpc.get_model_config("tiny"))[0]
    with grpc.insecure_channel(f"unix:{served.worker.spec.grpc_path}") as channel:
        for method in ("ModelInfer", "ModelReady"):
            with pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary(f"/inference.GRPCInferenceService/{method}")(b"\xff\xff", timeout=20)
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    assert _infer(served, IMAGE).as_numpy("scores").shape == (1, 10)


def _infer(served: Served, image: np.ndarray[Any, Any], **more: Any) -> Any:
    return served.grpc.infer("tiny", [_image(by_grpc, image)], **more)


def test_a_worker_without_it_loads_nothing_of_it(served: Served, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Neither grpcio nor protobuf is in the memory of a worker that is not asked to serve it."""
    folder = tmp_path_factory.mktemp("h")
    with serving(tiny_spec(folder), folder) as plain:
        assert "cygrpc" in _maps(served.worker)
        assert not any(name in _maps(plain) for name in ("cygrpc", "google/_upb"))


def _maps(worker: ServingProcess) -> str:
    return Path(f"/proc/{worker.process.pid}/maps").read_text()
