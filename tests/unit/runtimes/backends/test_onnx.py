"""ONNX variants: read without a runtime, inspected, raced, and no processor passes for a GPU."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from damaged_files import check_mutations, check_noise, check_truncations
from quick_race import quicken_races
from regatta_protocol.errors import Rejected
from regatta_protocol.measurement import Outcome
from regatta_protocol.values import Plugin
from regatta_runtimes.backends import onnx
from regatta_runtimes.candidate import Candidate
from regatta_runtimes.errors import CpuFallback, CreateFailed
from regatta_runtimes.model.onnxfile import survey_onnx
from regatta_runtimes.race import run as race_module
from regatta_runtimes.race.run import RaceSpec, RaceVariant, run_race
from regatta_runtimes.worker.golden import write_golden
from regatta_runtimes.worker.inspect import inspect_model
from tiny_models import dense_model
from tiny_onnx import dense_onnx, unary_onnx

needs_runtime = pytest.mark.skipif(
    find_spec("onnxruntime") is None, reason="onnxruntime is not installed: pip install 'regatta-edge[onnx]'"
)
WEIGHTS = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
BIAS = np.ones(3, dtype=np.float32)
DENSE = dense_onnx(WEIGHTS, BIAS)


@pytest.fixture(autouse=True)
def _quick_races(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken_races(monkeypatch)


def test_operators_and_weights_are_read_without_a_runtime() -> None:
    """One Gemm of float32, with its 3 · 4 + 3 weights."""
    found = survey_onnx(DENSE)

    assert found.operators == {"Gemm": 1}
    assert found.weights == {"float32": 60}
    assert (found.precision, found.requires) == ("float32", ())


def test_a_quantized_model_is_told_by_its_operators() -> None:
    """Its tensors may all be float outside."""
    assert survey_onnx(unary_onnx("QuantizeLinear")).precision == "int8"


def test_every_truncation_is_survived() -> None:
    """Cut at every byte: a survey or Rejected."""
    check_truncations(DENSE, survey_onnx)


def test_every_mutation_is_survived() -> None:
    """Bytes overwritten anywhere: a survey or Rejected."""
    check_mutations(DENSE, survey_onnx)


def test_noise_is_survived() -> None:
    """Random fields: a survey or Rejected."""
    check_noise(b"\x08\x08", survey_onnx)


def test_the_probe_model_is_the_one_that_the_recipe_builds() -> None:
    """The shipped probe.onnx is float32 [1, 4] -> Abs, nothing else."""
    assert Path(race_module.__file__).with_name("probe.onnx").read_bytes() == unary_onnx()


@needs_runtime
def test_facts_of_a_small_model(tmp_path: Path) -> None:
    """Tensors, operators, precision and format."""
    (tmp_path / "m.onnx").write_bytes(DENSE)

    facts = inspect_model(tmp_path / "m.onnx")

    assert [(spec.dtype, spec.shape) for spec in (*facts.inputs, *facts.outputs)] == [
        ("float32", (1, 4)),
        ("float32", (1, 3)),
    ]
    assert (facts.operators, facts.precision, facts.model_format) == (("Gemm",), "float32", "onnx")


@needs_runtime
@pytest.mark.parametrize(
    ("data", "words"),
    [(DENSE[:40], "cut off|holds no operator"), (unary_onnx("MyOwnOperator"), "MyOwnOperator")],
)
def test_what_cannot_run_is_rejected_with_its_cause(tmp_path: Path, data: bytes, words: str) -> None:
    """Cut off, and an operator that nothing supports, by its name."""
    (tmp_path / "m.onnx").write_bytes(data)

    with pytest.raises(Rejected, match=words):
        inspect_model(tmp_path / "m.onnx")


@needs_runtime
def test_both_formats_race_for_one_placement(tmp_path: Path) -> None:
    """Each variant by the runtimes of its format, all held against golden samples."""
    paths = {"tfl": tmp_path / "m.tflite", "onnx": tmp_path / "m.onnx"}
    paths["tfl"].write_bytes(dense_model(WEIGHTS, BIAS))
    paths["onnx"].write_bytes(DENSE)
    write_golden(paths, tmp_path / "golden.npz")

    report = run_race(
        RaceSpec(
            model="m",
            version=1,
            variants=tuple(RaceVariant(name=name, path=str(path)) for name, path in paths.items()),
            golden=str(tmp_path / "golden.npz"),
            threads=(1,),
            runtimes=("litert", "onnx"),
        )
    )

    results = {result.id: result for result in report.candidates}
    assert set(results) == {"litert/tfl/xnnpack/t1", "litert/tfl/none/t1", "onnx/onnx/cpu/t1"}
    assert all(result.outcome in (Outcome.MEASURED, Outcome.DROPPED) for result in results.values())
    assert (results["onnx/onnx/cpu/t1"].golden_snr_db or 0) > 60
    assert report.placement is not None


def test_without_variants_in_onnx_its_runtime_is_not_even_told(tmp_path: Path) -> None:
    """Nobody misses it."""
    (tmp_path / "m.tflite").write_bytes(dense_model(WEIGHTS, BIAS))

    report = run_race(
        RaceSpec(
            model="m",
            version=1,
            variants=(RaceVariant(name="v", path=str(tmp_path / "m.tflite")),),
            threads=(1,),
            runtimes=("litert", "onnx"),
            backends={"onnx": "no_such_backend"},
        )
    )

    assert {result.runtime for result in report.candidates} == {"litert"}


@needs_runtime
def test_a_provider_that_is_not_here_is_said(tmp_path: Path) -> None:
    """The wheel for the processor has no CUDA."""
    (tmp_path / "m.onnx").write_bytes(DENSE)

    with pytest.raises(CreateFailed, match="no provider cuda"):
        onnx.open_session(Candidate("onnx", "v", "cuda", 1, Plugin()), tmp_path / "m.onnx")


@needs_runtime
@pytest.mark.parametrize("loads", [False, True])
def test_a_provider_that_leaves_the_work_to_the_processor_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loads: bool
) -> None:
    """Whether ONNX Runtime refuses by itself, as it is asked to, or opens the model on the processor in silence."""
    vendor = onnx._vendor()

    def open_on_cpu(path: str, sess_options: Any, providers: Any) -> Any:
        assert providers == [("CUDAExecutionProvider", {"device_id": "0"})]
        if loads:
            return vendor.InferenceSession(path, providers=["CPUExecutionProvider"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # this build has no CUDA, which is the point
            return vendor.InferenceSession(path, sess_options=sess_options, providers=["CUDAExecutionProvider"])

    pretending = {
        **vars(vendor),
        "InferenceSession": open_on_cpu,
        "get_available_providers": lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
    }
    monkeypatch.setattr(onnx, "_vendor", lambda: SimpleNamespace(**pretending))
    (tmp_path / "m.onnx").write_bytes(DENSE)

    with pytest.raises(CpuFallback, match=r"computed by CPUExecutionProvider|explicitly disabled"):
        onnx.open_session(Candidate("onnx", "v", "cuda", 1, Plugin(options={"device_id": "0"})), tmp_path / "m.onnx")


@needs_runtime
def test_what_is_no_tensor_of_numbers_is_refused(tmp_path: Path) -> None:
    """A model of texts cannot be served."""
    texts = unary_onnx("Identity").replace(b"\x08\x01\x12\x08", b"\x08\x08\x12\x08")  # TensorProto.STRING
    (tmp_path / "m.onnx").write_bytes(texts)

    with pytest.raises(CreateFailed, match="only tensors of numbers"):
        onnx.open_session(Candidate("onnx", "v", "cpu", 1), tmp_path / "m.onnx")
