"""A busy worker: deadlines and the queue's bound over its socket, and its neighbor, which does not wait."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gated_backend import GATED_WORKER, gate_of
from polling import wait_until
from regatta_agent.client import Client
from regatta_agent.serving.spec import ServeLimits, ServeSpec
from regatta_protocol.ids import ModelName
from serving_process import ServingProcess, post, raw_exchange, receive_answer, status_of
from tiny_models import dense_model, write_tiny_model

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingProcess]:
    """A worker that computes only while its gate is open, with room for five requests."""
    folder = tmp_path_factory.mktemp("slow")
    model = folder / "m"
    model.touch()
    gate_of(model).touch()
    spec = ServeSpec(
        model=ModelName("slow"),
        version=1,
        candidate_id="gated/v/none/t1",
        variant_path=model,
        socket_path=folder / "slow.sock",
        limits=ServeLimits(queue_length=5),
    )
    worker = ServingProcess(spec, folder, GATED_WORKER)
    try:
        worker.ready()
        yield worker
    finally:
        worker.kill()


def _metric(worker: ServingProcess, name: str, outcome: str = "") -> int:
    text = raw_exchange(worker.spec.socket_path, b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").decode()
    return int(next(line for line in text.splitlines() if line.startswith(name) and outcome in line).rpartition(" ")[2])


@contextlib.contextmanager
def _shut(worker: ServingProcess) -> Iterator[None]:
    """Let no inference end meanwhile."""
    gate = gate_of(worker.spec.variant_path)
    gate.unlink()
    try:
        yield
    finally:
        gate.touch()


class _Asked:
    """Requests under way, each on a connection and a thread of its own, and their answers in the order they came."""

    def __init__(self, worker: ServingProcess) -> None:
        self.answers: list[tuple[str, bytes]] = []
        self._worker = worker
        self._threads: list[threading.Thread] = []

    def ask(self, name: str, **parameters: Any) -> None:
        """Send a request."""
        tensor = {"name": "in", "shape": [1, 4], "datatype": "FP32", "data": [0, 0, 0, 0]}
        body = json.dumps({"id": name, "inputs": [tensor], "parameters": parameters}).encode()
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(20)
        connection.connect(str(self._worker.spec.socket_path))
        connection.sendall(post("/v2/models/slow/infer", body))

        def receive() -> None:
            with connection:
                self.answers.append((name, receive_answer(connection)))

        thread = threading.Thread(target=receive)
        thread.start()
        self._threads.append(thread)

    def ended(self) -> dict[str, bytes]:
        """Return the answers when all are there, in their order."""
        for thread in self._threads:
            thread.join(20)
        return dict(self.answers)


def _pending(worker: ServingProcess, count: int) -> None:
    wait_until(
        lambda: _metric(worker, "regatta_inference_pending_requests") == count, 10, f"{count} are pending", 0.002
    )


def test_deadlines_and_the_bound(slow: ServingProcess) -> None:
    """The late one is 504 while the others wait, the sixth is 429, and all others are answered."""
    asked = _Asked(slow)
    with _shut(slow):
        asked.ask("first")
        _pending(slow, 1)
        asked.ask("second")
        _pending(slow, 2)
        asked.ask("patient", priority=10)
        _pending(slow, 3)
        asked.ask("late", timeout=1000)
        wait_until(lambda: [name for name, _ in asked.answers] == ["late"], 10, "the late one was refused")
        asked.ask("urgent", priority=1)
        _pending(slow, 4)
        asked.ask("fifth", priority=10, timeout=60_000_000)
        _pending(slow, 5)
        asked.ask("one-more")
        wait_until(lambda: len(asked.answers) == 2, 10, "one more was refused")
        assert _metric(slow, "regatta_inference_requests_total", outcome="expired") == 1

    answers = asked.ended()

    statuses = {name: status_of(answer) for name, answer in answers.items()}
    assert statuses.pop("late") == 504
    assert statuses.pop("one-more") == 429
    assert set(statuses.values()) == {200}
    assert b"\r\nretry-after: " in answers["one-more"]
    assert b"timeout of 1000 us" in answers["late"]
    assert set(statuses) == {"first", "second", "patient", "urgent", "fifth"}


@pytest.mark.parametrize("parameters", [{"priority": 11}, {"priority": "high"}, {"timeout": -1}, {"timeout": 1.5}])
def test_wrong_wishes_are_refused(slow: ServingProcess, parameters: dict[str, Any]) -> None:
    """A priority or timeout that is none is an error of its name."""
    asked = _Asked(slow)
    asked.ask("wrong", **parameters)

    answer = asked.ended()["wrong"]

    assert status_of(answer) == 400
    assert next(iter(parameters)).encode() in answer


def test_a_slow_model_does_not_stall_another(slow: ServingProcess, tmp_path: Path) -> None:
    """While the slow one's queue is full, another model answers."""
    spec = ServeSpec(
        model=ModelName("tiny"),
        version=1,
        candidate_id="litert/float32/xnnpack/t1",
        variant_path=write_tiny_model(tmp_path / "tiny.tflite"),
        socket_path=tmp_path / "tiny.sock",
    )
    worker = ServingProcess(spec, tmp_path)
    with contextlib.ExitStack() as stack:
        stack.callback(worker.kill)
        worker.ready()
        client = stack.enter_context(Client(spec.socket_path))
        asked = _Asked(slow)
        with _shut(slow):
            for number in range(5):
                asked.ask(str(number))
            _pending(slow, 5)

            for _ in range(20):
                client.infer("tiny", np.zeros((1, 8, 8, 1), np.float32))

            assert asked.answers == []
        assert all(status_of(answer) == 200 for answer in asked.ended().values())


def test_a_batch_is_split_right_under_load(tmp_path: Path) -> None:
    """Many clients of a model with a changeable batch: everybody gets the answer to its own input."""
    weights = np.random.default_rng(0).normal(size=(256, 256)).astype(np.float32)
    model = tmp_path / "dense.tflite"
    model.write_bytes(dense_model(weights, np.zeros(256, np.float32), any_batch=True))
    spec = ServeSpec(
        model=ModelName("dense"),
        version=1,
        candidate_id="litert/float32/xnnpack/t1",
        variant_path=model,
        socket_path=tmp_path / "dense.sock",
        batch_delay_us=2000,
    )

    def ask(seed: int) -> None:
        x = np.random.default_rng(seed).normal(size=(1 + seed % 3, 256)).astype(np.float32)
        with Client(spec.socket_path) as client:
            for _ in range(30):
                scores = client.infer("dense", x)["out"]
                np.testing.assert_allclose(scores, x @ weights.T, rtol=1e-3, atol=1e-3)
                done.append(seed)

    done: list[int] = []
    worker = ServingProcess(spec, tmp_path)
    try:
        worker.ready()
        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        x = np.random.default_rng(9).normal(size=(8, 256)).astype(np.float32)
        tensor = {"name": "in", "shape": [8, 256], "datatype": "FP32", "data": x.ravel().tolist()}
        body = json.dumps({"inputs": [tensor]}).encode()  # so long that it is read on a thread of its own
        answer = raw_exchange(spec.socket_path, post("/v2/models/dense/infer", body))
        inferences = _metric(worker, "regatta_inference_batch_size_count")
        rows = _metric(worker, "regatta_inference_batch_size_sum")
    finally:
        worker.kill()

    assert len(done) == 180
    assert rows == sum(1 + seed % 3 for seed in done) + 8
    assert len(body) > 32_768
    scores = json.loads(answer.partition(b"\r\n\r\n")[2])["outputs"][0]["data"]
    np.testing.assert_allclose(np.reshape(scores, (8, 256)), x @ weights.T, rtol=1e-3, atol=1e-3)
    assert inferences < 180
