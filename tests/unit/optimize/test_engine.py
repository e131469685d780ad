"""Whatever the scheme, weights really change, the file runs, and its answers stay near the float model's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from regatta_fleet.optimize.answers import real_answers
from regatta_fleet.optimize.model_builder import ModelBuilder
from regatta_fleet.optimize.model_file import ModelTree, constant, model_bytes, parse_model, read_model, set_constant
from regatta_fleet.optimize.quantize.engine import Source
from regatta_fleet.optimize.quantize.schemes import SCHEMES, Scheme
from regatta_fleet.optimize.samples import read_samples
from regatta_protocol.errors import Rejected
from regatta_runtimes.worker.score import snr_db
from shared_data import shared_file
from tiny_models import Floats, depthwise_chain, normal, plain_chain, residual

_LEAST_DB: dict[Scheme, float] = {
    "int8": 20.0,
    "int8-unfolded": 20.0,
    "int8-float-stem": 20.0,
    "int8-weights": 30.0,
    "int4-weights": 10.0,
    "float16": 55.0,
    "int8-dynamic": 20.0,
}


def _samples(model: ModelTree, count: int = 60) -> Floats:
    shape = tuple(int(size) for size in model.subgraphs[0].tensors[model.subgraphs[0].inputs[0]].shape[1:])
    return normal(count, *shape, seed=3, scale=1.0)


def _answers(content: bytes, samples: Floats, folder: Path) -> Floats:
    path = folder / "model.tflite"
    path.write_bytes(content)
    return real_answers(path, samples)


def _quantized(model: ModelTree, samples: Floats, scheme: Scheme = "int8") -> bytes:
    source = Source(model)
    source.calibrate(samples)
    return source.quantize_by(scheme).content


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("build", [plain_chain, residual])
def test_every_scheme_changes_the_weights_and_stays_near_float(
    build: Callable[[], ModelTree], scheme: Scheme, tmp_path: Path
) -> None:
    model = build()
    samples = _samples(model)
    source = Source(model)
    source.calibrate(samples)

    made = source.quantize_by(scheme)

    floats = 1 if scheme == "int8-float-stem" else 0
    assert all((layer.precision == "float32") == (place < floats) for place, layer in enumerate(made.layers))
    found, wanted = (_answers(content, samples, tmp_path) for content in (made.content, model_bytes(model)))
    assert snr_db([found], [wanted]) > _LEAST_DB[scheme]


def test_int4_weights_are_int4_but_for_depthwise_layers() -> None:
    made = Source(depthwise_chain()).quantize_by("int4-weights")

    assert [(layer.kind, layer.precision) for layer in made.layers] == [
        ("CONV_2D", "int4"),
        ("DEPTHWISE_CONV_2D", "int8"),
        ("CONV_2D", "int4"),
        ("FULLY_CONNECTED", "int4"),
    ]


def test_old_files_are_quantized_after_all() -> None:
    """MLPerf Tiny's files keep operators in the deprecated field: unnormalized, the quantizer would change nothing."""
    source = Source(read_model(shared_file("mlperf_tiny/pretrainedResnet.tflite")))
    source.calibrate(normal(4, 32, 32, 3, scale=50.0))

    made = source.quantize_by("int8")

    assert [layer.precision for layer in made.layers] == ["int8"] * 10


def test_min_max_ranges_beat_the_quantizers_moving_average(tmp_path: Path) -> None:
    model = read_model(shared_file("mlperf_tiny/kws_float32.tflite"))
    with np.load(shared_file("mlperf_tiny/kws01_dev.npz")) as arrays:
        x = ((arrays["x"].astype(np.float32) - arrays["zero_point"]) * arrays["scale"]).astype(np.float32)
    tuning, check = x[:100], x[100:200]
    wanted = _answers(model_bytes(model), check, tmp_path)
    noises = []
    for moving_average in (False, True):
        source = Source(model)
        source.calibrate(tuning, moving_average=moving_average)
        content = source.quantize_by("int8").content
        noises.append(snr_db([_answers(content, check, tmp_path)], [wanted]))

    assert noises[0] > noises[1] + 3


def test_channels_of_zeros_cost_nothing(tmp_path: Path) -> None:
    """Dead filters have no range; left so, their biases do not fit in int32 and two of eight bring 5 dB."""
    model = plain_chain()
    tensor = model.subgraphs[0].tensors[model.subgraphs[0].operators[0].inputs[1]]
    values = constant(model, tensor)
    assert values is not None
    values[2:4] = 0.0
    set_constant(model, tensor, values)
    samples = _samples(model)

    found = _answers(_quantized(model, samples), samples, tmp_path)

    assert snr_db([found], [_answers(model_bytes(model), samples, tmp_path)]) > 20


def test_a_layer_of_zeros_costs_nothing(tmp_path: Path) -> None:
    model = plain_chain()
    tensor = model.subgraphs[0].tensors[model.subgraphs[0].operators[1].inputs[1]]
    values = constant(model, tensor)
    assert values is not None
    set_constant(model, tensor, np.zeros_like(values))
    samples = _samples(model)

    found = _answers(_quantized(model, samples), samples, tmp_path)

    assert found == pytest.approx(_answers(model_bytes(model), samples, tmp_path), abs=0.02)


def test_one_channel_is_fine(tmp_path: Path) -> None:
    builder = ModelBuilder("one channel")
    place = builder.input("x", (1, 4, 4, 1))
    model = builder.finish([builder.conv("a", place, normal(1, 3, 3, 1), normal(1), (1, 4, 4, 1))])
    samples = _samples(model)

    found = _answers(_quantized(model, samples), samples, tmp_path)

    assert snr_db([found], [_answers(model_bytes(model), samples, tmp_path)]) > 20


@pytest.mark.parametrize("share", ["tensors", "buffers", "the bias's buffer"])
def test_layers_that_share_weights_are_fine(share: str, tmp_path: Path) -> None:
    builder = ModelBuilder("twins")
    weights, bias = normal(4, 3, 3, 4, seed=1), normal(4, seed=2)
    place = builder.input("x", (1, 4, 4, 4))
    for name in ("a", "b"):
        place = builder.conv(name, place, weights, bias, (1, 4, 4, 4))
    model = builder.finish([place])
    graph = model.subgraphs[0]
    first, second = graph.operators
    for index in (2,) if share == "the bias's buffer" else (1, 2):
        if share == "tensors":
            second.inputs[index] = first.inputs[index]
        else:
            graph.tensors[second.inputs[index]].buffer = graph.tensors[first.inputs[index]].buffer
    samples = _samples(model)

    found = _answers(_quantized(model, samples), samples, tmp_path)

    assert snr_db([found], [_answers(model_bytes(model), samples, tmp_path)]) > 25


def test_the_same_input_gives_the_same_bytes() -> None:
    samples = _samples(residual())

    assert _quantized(residual(), samples) == _quantized(residual(), samples)


def _two_inputs() -> ModelTree:
    builder = ModelBuilder("two inputs")
    left, right = builder.input("x", (1, 4)), builder.input("y", (1, 4))
    return builder.finish([builder.add("sum", left, right, (1, 4))])


def _no_weights() -> ModelTree:
    builder = ModelBuilder("softmax")
    return builder.finish([builder.softmax("s", builder.input("x", (1, 4)), (1, 4))])


@pytest.mark.parametrize(
    ("build", "samples", "words"),
    [
        (plain_chain, normal(0, 8, 8, 1), "no samples"),
        (plain_chain, normal(4, 7, 8, 1), r"shape \[7, 8, 1\], the model's input wants \[8, 8, 1\]"),
        (plain_chain, np.full((4, 8, 8, 1), 3e38, np.float32), "becomes NaN or infinite on the samples"),
        (_two_inputs, normal(4, 4), "2 inputs"),
        (_no_weights, normal(4, 4), r"none of the 0 layers .*\(operators: SOFTMAX\)"),
    ],
)
def test_what_cannot_be_quantized_is_refused(build: Callable[[], ModelTree], samples: Floats, words: str) -> None:
    with pytest.raises(Rejected, match=words):
        _quantized(build(), samples)


def test_a_folded_convolution_gives_the_same_bytes_in_int8(tmp_path: Path) -> None:
    """Ranges, scales and sums of integers are the same; PAD and SPACE_TO_DEPTH move bytes."""
    model = read_model(shared_file("mlperf_tiny/kws_float32.tflite"))
    samples = read_samples(shared_file("mlperf_tiny/kws01_dev.npz")).x[:60]
    source = Source(model)
    source.calibrate(samples)

    folded, plain, weights = (source.quantize_by(scheme) for scheme in ("int8", "int8-unfolded", "int8-weights"))

    assert [one.way for one in source.folded] == ["PAD and SPACE_TO_DEPTH"]
    assert "PAD and SPACE_TO_DEPTH: its kernel of 10 × 4 × 1 becomes 5 × 3 × 4" in folded.rewritten[0]
    assert plain.rewritten == ("average pool over the whole written as MEAN",)
    assert weights.rewritten == ()
    assert all(layer.precision == "int8" for layer in folded.layers)
    assert np.array_equal(_answers(folded.content, samples, tmp_path), _answers(plain.content, samples, tmp_path))


def test_without_a_stride_to_fold_both_are_one_file() -> None:
    source = Source(plain_chain())
    source.calibrate(_samples(plain_chain()))

    assert source.quantize_by("int8") == source.quantize_by("int8-unfolded")


def test_a_stem_of_several_channels_is_refused() -> None:
    with pytest.raises(Rejected, match="single channel"):
        Source(depthwise_chain()).quantize_by("int8-float-stem")


def test_depthwise_layers_are_quantized_too(tmp_path: Path) -> None:
    model = depthwise_chain()
    samples = _samples(model)

    found = _answers(_quantized(model, samples), samples, tmp_path)

    assert snr_db([found], [_answers(model_bytes(model), samples, tmp_path)]) > 20


def test_static_int8_without_ranges_is_refused() -> None:
    with pytest.raises(Rejected, match="no samples"):
        Source(plain_chain()).quantize_by("int8")


def test_compact_files_keep_the_names_of_inputs_and_outputs() -> None:
    graph = parse_model(_quantized(plain_chain(), _samples(plain_chain()))).subgraphs[0]

    public = {int(graph.inputs[0]), int(graph.outputs[0])}
    assert all(bool(tensor.name) == (index in public) for index, tensor in enumerate(graph.tensors))
