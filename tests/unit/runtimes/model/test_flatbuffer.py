"""The walk over a TFLite file: names operators, and survives every damaged file."""

from __future__ import annotations

import numpy as np
import pytest

from damaged_files import check_mutations, check_noise, check_truncations, survives
from regatta_protocol.errors import Rejected
from regatta_runtimes.backends import litert
from regatta_runtimes.candidate import Candidate
from regatta_runtimes.errors import CreateFailed
from regatta_runtimes.model.flatbuffer import read_graph, survey
from shared_data import shared_file, shared_files
from tiny_models import dense_model, unary_model

DENSE = dense_model(np.ones((8, 4), dtype=np.float32), np.zeros(8, dtype=np.float32))


@pytest.mark.parametrize(
    ("data", "operators"),
    [
        (DENSE, {"FULLY_CONNECTED": 1}),
        (unary_model(101), {"ABS": 1}),
        (unary_model(150), {"GELU": 1}),
        (unary_model(custom="edgetpu-custom-op"), {"edgetpu-custom-op": 1}),
        (unary_model(4000), {"BUILTIN_4000": 1}),
    ],
)
def test_operators_are_named_by_either_code_field(data: bytes, operators: dict[str, int]) -> None:
    """Old (byte) and new (int) builtin codes, custom names, and codes newer than our table."""
    assert survey(data).operators == operators


def test_a_file_for_an_accelerator_says_so() -> None:
    """The Edge TPU compiler's operator requires edgetpu."""
    assert survey(unary_model(custom="edgetpu-custom-op")).requires == ("edgetpu",)
    assert survey(DENSE).requires == ()


@pytest.mark.parametrize("data", [b"", b"TFL3", b"\0" * 100, b"\0\0\0\0TFL3", b"\xff\xff\xff\xffTFL3" + b"\0" * 50])
def test_what_is_no_model_is_rejected(data: bytes) -> None:
    """Empty, short and foreign files."""
    with pytest.raises(Rejected):
        survey(data)


def test_every_truncation_of_a_small_model_is_survived() -> None:
    """Cut at every byte: an answer or Rejected."""
    check_truncations(DENSE, survey, read_graph)


def test_every_mutation_of_a_small_model_is_survived() -> None:
    """Bytes overwritten anywhere: an answer or Rejected."""
    check_mutations(DENSE, survey, read_graph)


def test_noise_behind_the_identifier_is_survived() -> None:
    """Random tables: an answer or Rejected."""
    check_noise(b"\x10\0\0\0TFL3", survey, read_graph)


def test_real_models_are_read_and_survive_truncation() -> None:
    """Each real model: operators are found, and 60 cuts of it raise nothing but Rejected."""
    for path in shared_files("*/*.tflite"):
        content = path.read_bytes()
        assert survey(content).operators
        for cut in np.linspace(0, len(content) - 1, 60, dtype=int):
            survives(content[: int(cut)], survey, read_graph)


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("mlperf_tiny/kws_float32.tflite", "float32"),
        ("mlperf_tiny/kws_ref_model.tflite", "int8"),
        ("coral/mobilenet_v2_1.0_224_quant.tflite", "uint8"),
    ],
)
def test_precision_of_real_models(name: str, precision: str) -> None:
    """By what is computed and what is stored."""
    assert survey(shared_file(name).read_bytes()).precision == precision


def test_inputs_and_outputs_of_real_models_are_as_an_interpreter_says() -> None:
    """Names, types, shapes, scales and zero points, to the last digit."""
    for path in shared_files("*/*.tflite"):
        graph = read_graph(path.read_bytes())
        try:
            session = litert.open_session(Candidate("litert", "v", "none", 1), path)
        except CreateFailed as err:
            assert err.specs == (graph.inputs, graph.outputs), path
        else:
            assert (session.inputs, session.outputs) == (graph.inputs, graph.outputs), path


def test_tensors_are_numbered_as_in_the_file() -> None:
    """The input is its first tensor and the output its last."""
    graph = read_graph(DENSE)

    assert (graph.input_tensors, graph.output_tensors) == ((0,), (3,))
    assert [(spec.name, spec.dtype, spec.shape, spec.scale) for spec in (*graph.inputs, *graph.outputs)] == [
        ("in", "float32", (1, 4), None),
        ("out", "float32", (1, 8), None),
    ]
