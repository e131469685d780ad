"""Two real workers, one in the shadow of the other: a sample of requests goes to both, and answers are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from polling import wait_until
from regatta_agent.client import Client
from regatta_agent.serving.events import Shadowed
from regatta_agent.serving.spec import ServeSpec
from regatta_protocol.ids import ModelName
from serving_process import ServingProcess, raw_exchange
from tiny_models import dense_model

pytestmark = pytest.mark.system

INPUTS = np.random.default_rng(0).normal(size=(200, 1, 8)).astype(np.float32)
WEIGHTS = np.random.default_rng(1).normal(size=(4, 8)).astype(np.float32)


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[tuple[ServingProcess, ServingProcess]]:
    """The version that serves and the next one, which takes class 0 for class 1 and the other way round."""
    processes = []
    for version, weights in ((1, WEIGHTS), (2, WEIGHTS[[1, 0, 2, 3]])):
        model = tmp_path / f"{version}.tflite"
        model.write_bytes(dense_model(weights, np.zeros(4, np.float32)))
        spec = ServeSpec(
            model=ModelName("dense"),
            version=version,
            candidate_id="litert/float32/xnnpack/t1",
            variant_path=model,
            socket_path=tmp_path / f"{version}.sock",
            shadow_path=tmp_path / "dense.shadow",
            window_s=0.5,
        )
        processes.append(ServingProcess(spec, tmp_path))
    try:
        for process in processes:
            process.ready()
        yield processes[0], processes[1]
    finally:
        for process in processes:
            process.kill()


def test_answers_are_compared_and_the_next_version_counts_nothing(
    workers: tuple[ServingProcess, ServingProcess], tmp_path: Path
) -> None:
    """Clients get the serving version's answers; it tells how often they agreed; a dead shadow fails nobody."""
    serving, shadow = workers
    (tmp_path / "dense.shadow").symlink_to(shadow.spec.socket_path)

    with Client(serving.spec.socket_path) as client:

        def compared(enough: Callable[[Shadowed], bool]) -> Shadowed:
            """Ask, checking each answer, until enough has been compared."""
            found: list[Shadowed] = []

            def asked() -> bool:
                for x in INPUTS:
                    np.testing.assert_allclose(client.infer("dense", x)["out"], x @ WEIGHTS.T, rtol=1e-3, atol=1e-3)
                event = serving.next_event()
                if isinstance(event, Shadowed):
                    found.append(event)
                return bool(found) and enough(found[-1])

            wait_until(asked, 60, "enough is compared")
            return found[-1]

        told = compared(lambda told: told.requests >= 50)
        assert (told.socket, told.failed, told.classified) == ("2.sock", 0, told.requests)
        share = np.isin((INPUTS @ WEIGHTS.T).argmax(axis=-1), (2, 3)).mean()
        assert told.agreed / told.classified == pytest.approx(share, abs=0.25)
        metrics = raw_exchange(shadow.spec.socket_path, b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").decode()
        assert 'outcome="success"} 0\n' in metrics

        shadow.kill()
        compared(lambda told: told.failed > 0)
