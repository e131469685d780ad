"""Layers are found with their precisions, and a quantization that did nothing is told."""

from __future__ import annotations

import numpy as np
import pytest

from regatta_fleet.optimize.compact import compact
from regatta_fleet.optimize.model_file import constant, model_bytes, parse_model, schema, set_constant
from regatta_fleet.optimize.quantize.layers import check_changed, layers, with_ranges
from regatta_protocol.errors import Rejected
from tiny_models import depthwise_chain, plain_chain


def test_layers_come_in_the_order_of_the_graph() -> None:
    found = [(layer.place, layer.name, layer.kind, layer.weights, layer.precision) for layer in layers(plain_chain(2))]

    assert found == [
        (0, "a", "CONV_2D", 18, "float32"),
        (1, "b", "CONV_2D", 108, "float32"),
        (4, "d", "FULLY_CONNECTED", 120, "float32"),
    ]


def test_unchanged_weights_are_refused() -> None:
    with pytest.raises(Rejected, match=r"none of the 3 layers .*CONV_2D"):
        check_changed(plain_chain(), plain_chain())


def test_a_lost_layer_is_refused() -> None:
    with pytest.raises(Rejected, match="3 layers with weights into 4"):
        check_changed(plain_chain(), depthwise_chain())


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf])
def test_a_scale_that_is_no_number_above_0_is_refused_by_tensor(scale: float) -> None:
    model = plain_chain()
    tensor = model.subgraphs[0].tensors[model.subgraphs[0].operators[0].inputs[1]]
    tensor.type = schema.TensorType.INT8
    tensor.quantization = schema.QuantizationParametersT()
    tensor.quantization.scale = np.array([1.0, scale], np.float32)

    with pytest.raises(Rejected, match="'a/weights'"):
        check_changed(plain_chain(), model)


@pytest.mark.parametrize("weight", [0.0, 1e-30, 1e-40])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_every_channel_gets_a_range_and_the_model_stays(place: int, weight: float) -> None:
    """Convolution, depthwise (channels on the last axis), 1×1 convolution."""
    model = depthwise_chain()
    graph = model.subgraphs[0]
    tensor = graph.tensors[graph.operators[place].inputs[1]]
    values = constant(model, tensor)
    assert values is not None
    channels = np.moveaxis(values, 3 if place == 1 else 0, 0)
    channels[[1, 4]] = weight
    set_constant(model, tensor, values)
    before = model_bytes(model)

    changed, count = with_ranges(model)

    fixed = constant(changed, changed.subgraphs[0].tensors[graph.operators[place].inputs[1]])
    assert fixed is not None
    assert count == 2
    ranges = np.abs(np.moveaxis(fixed, 3 if place == 1 else 0, 0)).reshape(len(channels), -1).max(1)
    assert ranges.min() > 1e-4 * ranges.max()
    assert np.abs(fixed - values).max() <= 1e-3 * np.abs(values).max() + 1e-9
    assert model_bytes(model) == before


def test_a_model_with_ranges_is_not_copied() -> None:
    model = plain_chain()

    assert with_ranges(model) == (model, 0)


def test_equal_constants_are_stored_once() -> None:
    model = plain_chain()
    graph = model.subgraphs[0]
    for operator in graph.operators[:2]:
        set_constant(model, graph.tensors[operator.inputs[1]], np.ones((6, 3, 3, 8), np.float32))

    small = parse_model(model_bytes(compact(model)))

    first, second = (small.subgraphs[0].tensors[operator.inputs[1]] for operator in small.subgraphs[0].operators[:2])
    assert first.buffer == second.buffer
    values = constant(small, second)
    assert values is not None and (values == 1).all()
    assert small.buffers[0].data is None
