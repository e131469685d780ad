"""A convolution that is folded answers as before, and only those are folded that gain by it."""

from __future__ import annotations

import copy
import math
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regatta_fleet.optimize.activations import record
from regatta_fleet.optimize.fold import fold
from regatta_fleet.optimize.model_builder import ModelBuilder
from regatta_fleet.optimize.model_file import ModelTree, model_bytes, operator_name, read_model, schema
from shared_data import shared_file
from tiny_models import Floats, depthwise_chain, normal

Padding = Literal["SAME", "VALID"]


def _stem(
    size: tuple[int, int],
    kernel: tuple[int, int],
    *,
    stride: tuple[int, int] = (2, 2),
    channels: int = 1,
    padding: Padding = "SAME",
    dilation: int = 1,
    seed: int = 0,
) -> ModelTree:
    """Return one convolution of 5 filters on [1, h, w, channels]."""
    builder = ModelBuilder("stem")
    reaches = [(taps - 1) * dilation + 1 for taps in kernel]
    out = [
        -(-size[axis] // stride[axis]) if padding == "SAME" else (size[axis] - reaches[axis]) // stride[axis] + 1
        for axis in (0, 1)
    ]
    place = builder.input("x", (1, *size, channels))
    weights = normal(5, *kernel, channels, seed=seed)
    place = builder.conv("a", place, weights, normal(5, seed=seed + 1), (1, *out, 5), padding=padding)
    model = builder.finish([place])
    options = model.subgraphs[0].operators[0].builtinOptions
    options.strideH, options.strideW = stride
    options.dilationHFactor = options.dilationWFactor = dilation
    return model


def _answers(model: ModelTree, samples: Floats) -> Floats:
    output = int(model.subgraphs[0].outputs[0])
    return record(model_bytes(model), samples, [output])[output]


def _operators(model: ModelTree) -> list[str]:
    return [operator_name(model, operator) for operator in model.subgraphs[0].operators]


@settings(max_examples=150)
@given(
    size=st.tuples(st.integers(1, 15), st.integers(1, 15)),
    kernel=st.tuples(st.integers(1, 10), st.integers(1, 10)),
    stride=st.tuples(st.integers(1, 4), st.integers(1, 4)) | st.integers(2, 4).map(lambda both: (both, both)),
    channels=st.integers(1, 3),
    padding=st.sampled_from(["SAME", "VALID"]),
    seed=st.integers(0, 99),
)
def test_a_folded_convolution_answers_as_before(
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    channels: int,
    padding: Padding,
    seed: int,
) -> None:
    """Folded wherever it can be, whether or not that pays."""
    if padding == "VALID":
        kernel = (min(kernel[0], size[0]), min(kernel[1], size[1]))
    model = _stem(size, kernel, stride=stride, channels=channels, padding=padding, seed=seed)
    before = model_bytes(model)
    samples = normal(2, *size, channels, seed=seed, scale=1.0)

    folded, done = fold(model, worth=math.inf)

    assert _answers(folded, samples) == pytest.approx(_answers(model, samples), abs=1e-5)
    assert model_bytes(model) == before
    assert len(done) == (_operators(folded) != ["CONV_2D"])
    if stride[1] > 1 and size[1] % stride[1] == 0 and padding == "SAME":
        assert done, "blocks of a row that is whole blocks"


def test_keyword_spotting_is_folded_to_taps_of_four_channels() -> None:
    model = read_model(shared_file("mlperf_tiny/kws_float32.tflite"))
    samples = normal(20, 49, 10, 1, scale=20.0)

    folded, done = fold(model)

    assert [(one.kernel, one.becomes, one.way) for one in done] == [((10, 4, 1), (5, 3, 4), "PAD and SPACE_TO_DEPTH")]
    assert _operators(folded)[:3] == ["PAD", "SPACE_TO_DEPTH", "CONV_2D"]
    assert _operators(folded)[3:] == _operators(model)[1:]
    assert _answers(folded, samples) == pytest.approx(_answers(model, samples), abs=1e-5)


@pytest.mark.parametrize(
    ("model", "becomes", "way"),
    [
        (_stem((28, 28), (3, 3)), (3, 2, 2), "RESHAPE"),
        (_stem((28, 28), (5, 5)), (3, 3, 4), "SPACE_TO_DEPTH"),
        (_stem((27, 28), (5, 5)), (5, 3, 2), "RESHAPE"),
        (_stem((27, 28), (10, 4)), (5, 3, 4), "PAD and SPACE_TO_DEPTH"),
        (_stem((32, 32), (8, 8), stride=(4, 4)), (4, 4, 4), "SPACE_TO_DEPTH"),
        (_stem((28, 28), (4, 4), padding="VALID"), (2, 2, 4), "SPACE_TO_DEPTH"),
        (_stem((28, 28), (3, 3), stride=(1, 2)), (3, 2, 2), "RESHAPE"),
        (_stem((28, 28), (3, 3), channels=2), (3, 2, 4), "RESHAPE"),
    ],
)
def test_the_way_that_gains_most_is_taken(model: ModelTree, becomes: tuple[int, int, int], way: str) -> None:
    """SPACE_TO_DEPTH is worth its time where it saves many taps, PAD where it saves many more."""
    _, done = fold(model)

    assert [(one.becomes, one.way) for one in done] == [(becomes, way)]


def _with_shared_weights() -> ModelTree:
    model = _stem((8, 8), (4, 4))
    twin = copy.deepcopy(model.subgraphs[0].operators[0])
    model.subgraphs[0].operators.append(twin)
    return model


def _behind_pad() -> ModelTree:
    """XNNPACK makes one operator of both; with RESHAPE between, 9 µs become 78."""
    builder, options = ModelBuilder("padded"), schema.PadOptionsT()
    pads = builder.constant("pads", np.array([[0, 0], [1, 1], [1, 1], [0, 0]], np.int32))
    place = builder.operator("PAD", [builder.input("x", (1, 28, 28, 1)), pads], "p", (1, 30, 30, 1), options)
    weights, bias = normal(8, 3, 3, 1), normal(8)
    return builder.finish([builder.conv("a", place, weights, bias, (1, 14, 14, 8), stride=2, padding="VALID")])


@pytest.mark.parametrize(
    "model",
    [
        _behind_pad(),
        _stem((96, 96), (3, 3), channels=3),  # 9 taps of 3 channels cost as much as 9 of 4; 6 of 6 as 12
        _stem((28, 28), (3, 3), stride=(1, 1)),
        _stem((28, 28), (3, 3), stride=(2, 1)),  # rows do not lie beside each other
        _stem((28, 28), (1, 1)),
        _stem((28, 27), (3, 3)),  # PAD of columns costs more than the convolution
        _stem((28, 28), (3, 3), channels=8),
        _stem((28, 28), (3, 3), stride=(1, 1), dilation=2),
        _with_shared_weights(),
        depthwise_chain(),
    ],
)
def test_what_gains_nothing_stays_as_it_is(model: ModelTree) -> None:
    assert fold(model) == (model, ())


@pytest.mark.parametrize("file", ["vww_96_float", "pretrainedResnet", "ad01_fp32"])
def test_real_models_without_such_a_convolution_stay_as_they_are(file: str) -> None:
    model = read_model(shared_file(f"mlperf_tiny/{file}.tflite"))

    assert fold(model) == (model, ())
