"""The search spends precision where it pays, and never leaves the budget."""

from __future__ import annotations

import numpy as np
import pytest

from regatta_fleet.optimize.model_builder import ModelBuilder
from regatta_fleet.optimize.model_file import ModelTree, constant, read_model, set_constant
from regatta_fleet.optimize.quantize.engine import Source
from regatta_fleet.optimize.quantize.layers import Layer
from regatta_fleet.optimize.quantize.search import LayerNoise, order_for_float, order_for_int4, search_precision
from regatta_fleet.optimize.samples import Samples, read_samples
from regatta_protocol.errors import Rejected
from shared_data import shared_file
from tiny_models import depthwise_chain, normal, plain_chain


def _noise(name: str, weights: int, int8_db: float | None, int4_db: float | None) -> LayerNoise:
    return LayerNoise(Layer(0, name, "CONV_2D", weights, "float32"), int8_db, int4_db)


def test_int4_goes_first_where_it_adds_the_least_noise_per_byte() -> None:
    noises = (
        _noise("small and quiet", 100, 40.0, 30.0),  # 1e-3 / 100
        _noise("large and noisy", 10_000, 40.0, 20.0),  # 1e-2 / 10000
        _noise("cannot", 10_000, 40.0, None),
        _noise("small and noisy", 100, 40.0, 10.0),  # 1e-1 / 100
    )

    order = [layer.name for layer in order_for_int4(noises)]

    assert order == ["large and noisy", "small and quiet", "small and noisy"]


def test_float_goes_first_where_int8_is_noisiest() -> None:
    noises = (_noise("quiet", 1, 40.0, None), _noise("cannot", 1, None, None), _noise("noisy", 1, 12.0, None))

    assert [layer.name for layer in order_for_float(noises)] == ["noisy", "quiet", "cannot"]


def _source(model: ModelTree, samples: Samples) -> Source:
    source = Source(model)
    source.calibrate(samples.x)
    return source


def test_a_wide_budget_makes_every_layer_int4_that_can_be() -> None:
    samples = Samples(normal(60, 8, 8, 2, seed=3, scale=1.0), np.zeros(60, np.int64))
    source = _source(depthwise_chain(), samples)

    mix = search_precision(source, samples, 1.0)

    assert [layer.precision for layer in mix.quantized.layers] == ["int4", "int8", "int4", "int4"]
    assert len(mix.quantized.content) < len(source.quantize_by("int8").content)
    assert [noise.int4_db is None for noise in mix.noises] == [False, True, False, False]
    assert all(noise.int8_db is not None and noise.int8_db > 15 for noise in mix.noises)


def _spiked() -> ModelTree:
    """A chain whose first layer has one filter a thousand times the others, which one range cannot serve."""
    model = plain_chain()
    graph = model.subgraphs[0]
    for index in graph.operators[0].inputs[1:3]:
        values = constant(model, graph.tensors[index])
        assert values is not None
        values[0] *= 3000.0
        set_constant(model, graph.tensors[index], values)
    weights = graph.tensors[graph.operators[1].inputs[1]]
    values = constant(model, weights)
    assert values is not None
    values[..., 0] = 0.0  # and nobody looks at it
    set_constant(model, weights, values)
    return model


def test_layers_become_float_where_int8_breaks_the_budget() -> None:
    """Without labels the output needs 10 dB over its error, which all int8 has not here."""
    samples = Samples(normal(60, 8, 8, 1, seed=3, scale=1.0))
    source = _source(_spiked(), samples)

    mix = search_precision(source, samples, 0.02)

    precisions = [layer.precision for layer in mix.quantized.layers]
    assert "float32" in precisions and "int8" in precisions


def test_the_budget_decides_how_far_it_goes_on_a_real_model() -> None:
    samples = read_samples(shared_file("mlperf_tiny/kws01_dev.npz"))
    half = samples.chosen(np.arange(len(samples)) % 2 == 0)
    source = _source(read_model(shared_file("mlperf_tiny/kws_float32.tflite")), half)

    narrow, wide = (search_precision(source, half, max_drop) for max_drop in (0.0, 0.04))

    int4 = [sum(layer.precision == "int4" for layer in mix.quantized.layers) for mix in (narrow, wide)]
    assert 1 <= int4[0] <= int4[1]
    assert len(wide.quantized.content) <= len(narrow.quantized.content)
    assert len(narrow.quantized.content) < len(source.quantize_by("int8").content)


def test_a_model_without_layers_is_refused() -> None:
    builder = ModelBuilder("softmax")
    model = builder.finish([builder.softmax("s", builder.input("x", (1, 4)), (1, 4))])

    with pytest.raises(Rejected, match="no layers"):
        search_precision(Source(model), Samples(normal(8, 4)), 0.02)
