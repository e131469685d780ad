"""Two placements of one model at once: requests go to both, and one that fails is not missed and comes back."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from polling import wait_until
from processes import children_of
from regatta_agent.client import Client
from regatta_agent.serving.spec import Contender, ServeLimits, ServeSpec
from regatta_protocol.errors import RegattaError
from regatta_protocol.ids import ModelName
from serving_process import ServingProcess, raw_exchange
from tiny_models import dense_model

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

WINNER, COMPANION = "litert/float32/none/t1", "litert/float32/xnnpack/t1"
_DEADLINE_S = 90.0  # each takes a second or two on a machine that has nothing else to do
_WIDTH = 2048  # 16 MB of weights: some milliseconds, so that requests of four clients wait, and a runner's wake-up pays
WEIGHTS = np.random.default_rng(0).normal(size=(_WIDTH, _WIDTH)).astype(np.float32)
X = np.random.default_rng(1).normal(size=(1, _WIDTH)).astype(np.float32)
EXPECTED = X @ WEIGHTS.T  # here, so that asking is most of what the clients do


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[ServingProcess]:
    model = tmp_path / "dense.tflite"
    model.write_bytes(dense_model(WEIGHTS, np.zeros(_WIDTH, np.float32)))
    other = Contender(candidate_id=COMPANION, variant_path=model)
    spec = ServeSpec(
        model=ModelName("dense"),
        version=1,
        candidate_id=WINNER,
        variant_path=model,
        standbys=(other,),
        companions=(other,),
        socket_path=tmp_path / "dense.sock",
        limits=ServeLimits(retry_base_s=0.1),
    )
    process = ServingProcess(spec, tmp_path)
    try:
        process.ready()
        yield process
    finally:
        process.kill()


def _served(worker: ServingProcess) -> dict[str, int]:
    """Return how many requests each placement has answered."""
    text = raw_exchange(worker.spec.socket_path, b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").decode()
    name = "regatta_inference_request_duration_seconds_count"
    lines = [line.partition("} ") for line in text.splitlines() if line.startswith(name)]
    return {labels.split('placement="')[1].split('"')[0]: int(value) for labels, _, value in lines}


def _runner(worker: ServingProcess) -> int | None:
    """Return the process id of the companion's runner."""
    return next(iter(children_of(worker.process.pid)), None)


def test_both_answer_and_one_that_dies_is_not_missed_and_comes_back(worker: ServingProcess) -> None:
    """Under load each answers; after SIGKILL to the companion's runner all are answered, and later by both again."""
    stop, wrong = threading.Event(), list[object]()

    def ask() -> None:
        with Client(worker.spec.socket_path) as client:
            while not stop.is_set():
                try:
                    answer = client.infer("dense", X)["out"]
                    np.testing.assert_allclose(answer, EXPECTED, rtol=1e-3, atol=1e-3)
                except (RegattaError, AssertionError) as err:
                    wrong.append(err)
                    return

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        wait_until(
            lambda: min(_served(worker).get(one, 0) for one in (WINNER, COMPANION)) > 20, _DEADLINE_S, "both answer"
        )
        runner = _runner(worker)
        assert runner is not None
        os.kill(runner, signal.SIGKILL)
        wait_until(lambda: _runner(worker) not in (None, runner), _DEADLINE_S, "it is opened anew")
        before = _served(worker)
        wait_until(lambda: all(_served(worker)[one] > before[one] for one in before), _DEADLINE_S, "both answer again")
    finally:
        stop.set()
        for thread in threads:
            thread.join(20)

    assert wrong == []
