"""Reading what a model file is: facts, and refusals that name the cause."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from regatta_protocol.errors import Misuse, Rejected
from regatta_runtimes.worker.inspect import inspect_model
from shared_data import shared_file
from tiny_models import dense_model, unary_model

DENSE = dense_model(np.ones((8, 4), dtype=np.float32), np.zeros(8, dtype=np.float32))


def _write(folder: Path, data: bytes) -> Path:
    path = folder / "m.tflite"
    path.write_bytes(data)
    return path


def test_facts_of_a_small_model(tmp_path: Path) -> None:
    """Tensors, operators, precision and size."""
    facts = inspect_model(_write(tmp_path, DENSE))

    assert [(spec.dtype, spec.shape) for spec in facts.inputs] == [("float32", (1, 4))]
    assert facts.outputs[0].shape == (1, 8)
    assert (facts.operators, facts.precision, facts.requires) == (("FULLY_CONNECTED",), "float32", ())
    assert facts.size_bytes == len(DENSE)


def test_a_quantized_model_states_scale_and_zero_point() -> None:
    """As the interpreter gives them."""
    facts = inspect_model(shared_file("mlperf_tiny/kws_ref_model.tflite"))

    assert (facts.inputs[0].dtype, facts.inputs[0].zero_point) == ("int8", 83)
    assert facts.inputs[0].scale == pytest.approx(0.5847029)
    assert facts.precision == "int8"


def test_a_model_for_an_accelerator_is_described() -> None:
    """No runtime here can run it, but what it requires is known."""
    facts = inspect_model(shared_file("coral/mobilenet_v1_0.25_128_quant_edgetpu.tflite"))

    assert facts.requires == ("edgetpu",)
    assert facts.inputs[0].shape == (1, 128, 128, 3)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (b"hello, I am a text file and no model", "no TFLite model"),
        (b"", "has 0 bytes"),
        (DENSE[: len(DENSE) // 2], "cut off|cannot build|damaged"),
        (unary_model(custom="MyOwnOperator"), "MyOwnOperator"),
        (unary_model(4000), "m.tflite"),
    ],
)
def test_what_cannot_run_is_rejected_with_its_cause(tmp_path: Path, model: bytes, words: str) -> None:
    """No model, empty, truncated, an operator that nothing supports (named), one from the future."""
    with pytest.raises(Rejected, match=words):
        inspect_model(_write(tmp_path, model))


def test_a_missing_file_is_rejected(tmp_path: Path) -> None:
    """By its path."""
    with pytest.raises(Rejected, match=r"absent\.tflite is not a file"):
        inspect_model(tmp_path / "absent.tflite")


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99])
def test_cut_real_models_are_rejected_or_read(share: float, tmp_path: Path) -> None:
    """A truncated model that crashes the vendor's reader is still only Rejected here."""
    content = shared_file("mlperf_tiny/kws_ref_model.tflite").read_bytes()

    with pytest.raises(Rejected):
        inspect_model(_write(tmp_path, content[: int(len(content) * share)]))


def test_without_any_runtime_it_is_a_wrong_setup(tmp_path: Path) -> None:
    """Nothing is wrong with the model then."""
    nothing = {"litert": "no_such_backend", "tflite": "no_such_backend"}

    with pytest.raises(Misuse, match="no runtime is installed"):
        inspect_model(_write(tmp_path, DENSE), backends=nothing)
