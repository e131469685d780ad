"""An average pool over the whole picture is a mean: the same in float, and better in int8."""

from __future__ import annotations

from typing import Literal

import pytest

from regatta_fleet.optimize.activations import record
from regatta_fleet.optimize.model_builder import ModelBuilder
from regatta_fleet.optimize.model_file import ModelTree, model_bytes, operator_name, parse_model, schema
from regatta_fleet.optimize.quantize.engine import Source
from regatta_fleet.optimize.quantize.pools import with_means
from tiny_models import Floats, depthwise_chain, normal, plain_chain


def _answers(model: ModelTree, samples: Floats) -> Floats:
    output = int(model.subgraphs[0].outputs[0])
    return record(model_bytes(model), samples, [output])[output]


def _operators(model: ModelTree) -> list[str]:
    return [operator_name(model, operator) for operator in model.subgraphs[0].operators]


def _pool(size: int | tuple[int, int], out: tuple[int, int], kind: Literal["MAX", "AVERAGE"] = "AVERAGE") -> ModelTree:
    builder = ModelBuilder("pool")
    place = builder.input("x", (1, 4, 6, 3))
    return builder.finish([builder.pool("p", place, (1, *out, 3), size=size, kind=kind)])


def test_a_pool_over_all_becomes_a_mean_that_answers_alike() -> None:
    model = depthwise_chain()
    before, samples = model_bytes(model), normal(4, 8, 8, 2, scale=1.0)

    changed, count = with_means(model)

    assert count == 1
    assert _operators(changed) == [
        "MEAN" if kind == "AVERAGE_POOL_2D" else kind for kind in _operators(model)
    ] and "MEAN" in _operators(changed)
    assert _answers(changed, samples) == pytest.approx(_answers(model, samples), abs=1e-6)
    assert model_bytes(model) == before


def _clipped() -> ModelTree:
    model = _pool((4, 6), (1, 1))
    model.subgraphs[0].operators[0].builtinOptions.fusedActivationFunction = schema.ActivationFunctionType.RELU6
    return model


@pytest.mark.parametrize(
    "model", [_pool(2, (2, 3)), _pool((4, 2), (1, 3)), _pool((4, 6), (1, 1), "MAX"), _clipped(), plain_chain()]
)
def test_other_pools_stay(model: ModelTree) -> None:
    assert with_means(model) == (model, 0)


def test_a_mean_has_a_finer_step_than_what_it_averages_in_int8() -> None:
    """A pool would have to have the same, and lose the bits."""
    source = Source(depthwise_chain())
    source.calibrate(normal(40, 8, 8, 2, seed=5, scale=1.0))

    made = parse_model(source.quantize_by("int8").content)

    assert "AVERAGE_POOL_2D" not in _operators(made)
    mean = made.subgraphs[0].operators[_operators(made).index("MEAN")]
    before, after = (made.subgraphs[0].tensors[index].quantization for index in (mean.inputs[0], mean.outputs[0]))
    assert after.scale[0] < 0.7 * before.scale[0]
