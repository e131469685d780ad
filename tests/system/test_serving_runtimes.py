"""The serving worker over each runtime: the same model answers alike, whatever computes it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from regatta_agent.client import Client
from regatta_agent.serving.spec import ServeLimits, ServeSpec
from regatta_protocol.ids import ModelName
from regatta_runtimes.worker.golden import write_golden
from serving_process import serving
from tiny_models import dense_model
from tiny_onnx import dense_onnx

pytestmark = pytest.mark.system

WEIGHTS = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
BIAS = np.ones(3, dtype=np.float32)


@pytest.mark.parametrize(
    "candidate", ["litert/v/xnnpack/t1", "compiled/v/cpu/t1", "compiled/v/cpu/t2", "onnx/v/cpu/t1"]
)
def test_each_runtime_serves(tmp_path: Path, candidate: str) -> None:
    """Opened, tested on golden samples and asked over the socket."""
    in_onnx = candidate.startswith("onnx")
    if in_onnx and find_spec("onnxruntime") is None:
        pytest.skip("onnxruntime is not installed: pip install 'regatta-edge[onnx]'")
    model, golden = tmp_path / "model", tmp_path / "golden.npz"
    model.write_bytes((dense_onnx if in_onnx else dense_model)(WEIGHTS, BIAS))
    write_golden({"v": model}, golden, count=4)
    spec = ServeSpec(
        model=ModelName("dense"),
        version=1,
        candidate_id=candidate,
        variant_path=model,
        golden_path=golden,
        socket_path=tmp_path / "dense.sock",
        limits=ServeLimits(drain_quiet_s=0.05),
    )
    x = np.array([[1.0, -2.0, 0.25, 3.0]], np.float32)

    with serving(spec, tmp_path), Client(spec.socket_path) as client:
        answer = client.infer("dense", x)["out"]

    np.testing.assert_allclose(answer, x @ WEIGHTS.T + BIAS, rtol=1e-5)
