"""The worker as a client sees it that nobody here wrote: NVIDIA's `tritonclient[http]` (docs/serving.md)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regatta_agent.serving.spec import ServeSpec
from regatta_protocol import __version__
from regatta_protocol.ids import ModelName
from serving_process import ServingProcess
from tiny_models import write_tiny_model

triton = pytest.importorskip("tritonclient.http", reason="tritonclient[http] of the dev extra is not installed")

utilities = pytest.importorskip("tritonclient.utils")
shared = pytest.importorskip("tritonclient.utils.shared_memory")

pytestmark = pytest.mark.system

IMAGE = np.random.default_rng(5).random((1, 8, 8, 1), dtype=np.float32)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("t")
    spec = ServeSpec(
        model=ModelName("tiny"),
        version=3,
        candidate_id="litert/float32/xnnpack/t1",
        variant_path=write_tiny_model(folder / "tiny.tflite"),
        socket_path=folder / "tiny.sock",
        tcp="127.0.0.1:0",
        shared_memory=True,
    )
    worker = ServingProcess(spec, folder)
    try:
        one = triton.InferenceServerClient(worker.ready().tcp)
        yield one
        one.close()
    finally:
        worker.kill()


def _image(array: np.ndarray[Any, Any] = IMAGE, *, binary: bool = True) -> Any:
    entry = triton.InferInput("image", list(array.shape), "FP32")
    entry.set_data_from_numpy(array, binary_data=binary)
    return entry


def _refused(ask: Any, *arguments: Any, **named: Any) -> tuple[str, str]:
    """Return the status and the message of the client's exception."""
    with pytest.raises(utilities.InferenceServerException) as refused:
        ask(*arguments, **named)
    error: Any = refused.value
    return str(error.status()), str(error.message())


def test_health_and_metadata(client: Any) -> None:
    """Liveness, readiness and metadata, with and without a version, and of what is not here."""
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("tiny") and client.is_model_ready("tiny", "3")
    assert not client.is_model_ready("tiny", "2") and not client.is_model_ready("other")
    server = client.get_server_metadata()
    assert (server["name"], server["version"]) == ("regatta", __version__)
    assert {"binary_tensor_data", "classification"} <= set(server["extensions"])
    for version in ("", "3"):
        model = client.get_model_metadata("tiny", version)
        assert (model["name"], model["versions"]) == ("tiny", ["3"])
        assert model["outputs"] == [{"name": "scores", "datatype": "FP32", "shape": [1, 10]}]
    status, message = _refused(client.get_model_metadata, "other")
    assert (status, "not served here" in message) == ("404", True)


def test_every_encoding_gives_the_same_numbers(client: Any) -> None:
    """JSON and binary, in and out in every mixture; the id comes back, parameters and headers of others are let be."""
    answers = []
    plain, packed = ([triton.InferRequestedOutput("scores", binary_data=flag)] for flag in (False, True))
    for binary_in in (False, True):
        for wish in ([], plain, packed):
            answer = client.infer(
                "tiny",
                [_image(binary=binary_in)],
                model_version="3",
                outputs=wish,
                request_id="r-7",
                parameters={"trace": "x", "number": 1},
                headers={"X-Trace": "1"},
                priority=1,
                timeout=60_000_000,
            )
            assert answer.get_response()["id"] == "r-7"
            assert (answer.get_response()["model_name"], answer.get_response()["model_version"]) == ("tiny", "3")
            answers.append(answer.as_numpy("scores"))

    for scores in answers:
        np.testing.assert_allclose(scores, answers[0], rtol=1e-6)
    assert answers[0].shape == (1, 10)


def test_classes_and_several_requests_at_once(client: Any) -> None:
    """The classification extension names the greatest scores; asynchronous requests are answered each."""
    scores = client.infer("tiny", [_image()]).as_numpy("scores")[0]
    wish = [triton.InferRequestedOutput("scores", class_count=3)]

    classes = client.infer("tiny", [_image()], outputs=wish).as_numpy("scores")
    pending = [client.async_infer("tiny", [_image()]) for _ in range(4)]

    assert [int(text.split(b":")[1]) for text in classes[0]] == np.argsort(-scores)[:3].tolist()
    assert all(one.get_result().as_numpy("scores").shape == (1, 10) for one in pending)


def test_statistics(client: Any) -> None:
    """The statistics extension counts what was answered, stage by stage."""
    before = client.get_inference_statistics("tiny")["model_stats"][0]["inference_stats"]["success"]["count"]
    client.infer("tiny", [_image()])

    (stats,) = client.get_inference_statistics("tiny", "3")["model_stats"]

    assert stats["inference_stats"]["success"]["count"] == before + 1
    assert stats["inference_stats"]["compute_infer"]["ns"] > 0
    assert stats["batch_stats"] == [{"batch_size": 1, "execution_count": stats["execution_count"]}]


def test_error_bodies(client: Any) -> None:
    """What is wrong comes as the protocol's error body, which the client turns into its own exception."""
    status, message = _refused(client.infer, "tiny", [_image(IMAGE[:, :4])])
    assert (status, "[1, 8, 8, 1]" in message) == ("400", True)
    status, message = _refused(client.infer, "tiny", [_image()], model_version="2")
    assert (status, "version '2'" in message) == ("404", True)
    status, message = _refused(client.infer, "tiny", [_image()], outputs=[triton.InferRequestedOutput("nothing")])
    assert (status, "'nothing'" in message) == ("400", True)
    status, message = _refused(client.infer, "tiny", [_image()], request_compression_algorithm="gzip")
    assert (status, "content-encoding" in message) == ("415", True)


@pytest.fixture
def region(client: Any) -> Iterator[tuple[str, Any]]:
    """A region of 1 KiB that the client's own tool makes, registered as `r`."""
    key = f"/regatta-test-{os.getpid()}"
    handle = shared.create_shared_memory_region("r", key, 1024)
    client.register_system_shared_memory("r", key, 1024)
    yield key, handle
    client.unregister_system_shared_memory()
    with contextlib.suppress(shared.SharedMemoryException, FileNotFoundError):
        shared.destroy_shared_memory_region(handle)


def _shared_image(size: int = IMAGE.nbytes) -> Any:
    entry = triton.InferInput("image", list(IMAGE.shape), "FP32")
    entry.set_shared_memory("r", size)
    return entry


def test_tensors_go_through_shared_memory(client: Any, region: tuple[str, Any]) -> None:
    """Input and output in one region, the output at an offset, give the numbers that the socket gives."""
    key, handle = region
    shared.set_shared_memory_region(handle, [IMAGE])
    wish = triton.InferRequestedOutput("scores")
    wish.set_shared_memory("r", 40, offset=512)

    answer = client.infer("tiny", [_shared_image()], outputs=[wish])

    found = shared.get_contents_as_numpy(handle, np.float32, [1, 10], offset=512)
    np.testing.assert_array_equal(found, client.infer("tiny", [_image()]).as_numpy("scores"))
    assert answer.get_output("scores")["parameters"]["shared_memory_region"] == "r"
    assert client.get_system_shared_memory_status() == [{"name": "r", "key": key, "offset": 0, "byte_size": 1024}]
    assert "system_shared_memory" in client.get_server_metadata()["extensions"]


def test_regions_that_do_not_hold_are_errors(client: Any, region: tuple[str, Any]) -> None:
    """Too small, unknown, shrunk and removed regions are refused, and the worker goes on."""
    key, _ = region
    small = triton.InferRequestedOutput("scores")
    small.set_shared_memory("r", 39)
    assert "shared_memory_byte_size" in _refused(client.infer, "tiny", [_image()], outputs=[small])[1]
    assert "needs 256 bytes" in _refused(client.infer, "tiny", [_shared_image(255)])[1]
    assert "already" in _refused(client.register_system_shared_memory, "r", key, 1024)[1]
    assert "no shared-memory object" in _refused(client.register_system_shared_memory, "q", "/absent", 1)[1]
    assert "not registered" in _refused(client.get_system_shared_memory_status, "q")[1]

    os.truncate(f"/dev/shm{key}", 100)
    assert "100 bytes now" in _refused(client.infer, "tiny", [_shared_image()])[1]
    Path(f"/dev/shm{key}").unlink()
    assert "was removed" in _refused(client.infer, "tiny", [_shared_image()])[1]
    client.unregister_system_shared_memory("r")
    assert "not registered" in _refused(client.infer, "tiny", [_shared_image()])[1]
    assert client.infer("tiny", [_image()]).as_numpy("scores").shape == (1, 10)
