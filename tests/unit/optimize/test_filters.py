"""Pruning follows channels wherever they go, and leaves a smaller model that runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from regatta_fleet.optimize.activations import record
from regatta_fleet.optimize.cost import count_macs
from regatta_fleet.optimize.model_builder import ModelBuilder
from regatta_fleet.optimize.model_file import ModelTree, constant, model_bytes, parse_model, read_model, set_constant
from regatta_fleet.optimize.prune.coupling import Group, channel_groups
from regatta_fleet.optimize.prune.filters import Criterion, prune_filters
from regatta_fleet.optimize.prune.importance import weight_importance
from regatta_fleet.optimize.prune.patches import layer_patches
from regatta_fleet.optimize.prune.refit import refit
from regatta_protocol.errors import Misuse, Rejected
from regatta_runtimes.worker.score import snr_db
from shared_data import shared_file
from tiny_models import Floats, branches, depthwise_chain, normal, plain_chain, residual


def _outputs(model: ModelTree, samples: Floats) -> Floats:
    output = int(model.subgraphs[0].outputs[0])
    return record(model_bytes(model), samples, [output])[output]


def _free(model: ModelTree) -> list[Group]:
    return [group for group in channel_groups(model) if group.fixed is None]


def _names(model: ModelTree, tensors: list[int]) -> set[str]:
    return {model.subgraphs[0].tensors[index].name.decode() for index in tensors}


@pytest.mark.parametrize(
    ("build", "filters", "followers", "blocks"),
    [
        (plain_chain, [{"a/weights"}, {"b/weights"}], [{"a/bias"}, {"b/bias"}], [[1], [4]]),
        (
            depthwise_chain,
            [{"a/weights"}, {"b/weights"}],
            [{"a/bias", "w/weights", "w/bias"}, {"b/bias"}],
            [[1], [1]],
        ),
        (
            residual,
            [{"stem/weights", "out/weights"}, {"in/weights"}],
            [{"stem/bias", "out/bias"}, {"in/bias"}],
            [[1, 16], [1]],
        ),
        (
            branches,
            [{"a/weights"}, {"b/weights"}, {"c/weights"}],
            [{"a/bias", "w/weights", "w/bias", "m"}, {"b/bias", "w/weights", "w/bias", "m"}, {"c/bias"}],
            [[1], [1], [4]],
        ),
    ],
)
def test_channels_are_followed(
    build: Callable[[], ModelTree], filters: list[set[str]], followers: list[set[str]], blocks: list[list[int]]
) -> None:
    """Through convolution, depthwise, pooling, relu, flattening into a dense layer, both sides of ADD, and side by side
    through CONCATENATION."""
    model = build()

    groups = _free(model)

    assert [_names(model, [span.tensor for span in group.filters]) for group in groups] == filters
    assert [_names(model, [span.tensor for span in group.followers]) for group in groups] == followers
    assert [sorted(consumer.weights.block for consumer in group.consumers) for group in groups] == blocks


@pytest.mark.parametrize("criterion", ["l1", "l2", "geometric-median", "reconstruction"])
@pytest.mark.parametrize(("build", "channels"), [(plain_chain, 1), (depthwise_chain, 2), (residual, 1), (branches, 2)])
def test_a_pruned_model_is_valid_and_smaller(
    build: Callable[[], ModelTree], channels: int, criterion: Criterion
) -> None:
    model = build()
    size = int(model.subgraphs[0].tensors[0].shape[1])
    samples = normal(24, size, size, channels, seed=3, scale=1.0)

    pruned = prune_filters(model, 0.5, criterion, samples)
    refit(model, pruned, samples)
    again = parse_model(model_bytes(pruned.model))

    assert _outputs(again, samples).shape == _outputs(model, samples).shape
    assert count_macs(again) < 0.6 * count_macs(model)
    assert len(model_bytes(again)) < len(model_bytes(model))


@pytest.mark.parametrize(("build", "channels"), [(plain_chain, 1), (depthwise_chain, 2), (residual, 1), (branches, 2)])
def test_taking_out_dead_filters_changes_nothing(build: Callable[[], ModelTree], channels: int) -> None:
    """Filters and biases of zero with relu say nothing; they must be the ones that go, and nothing else may move."""
    model = build()
    samples = normal(8, *(int(size) for size in model.subgraphs[0].tensors[0].shape[1:]), seed=3, scale=1.0)
    for group in _free(model):
        for span in group.filters + group.followers:
            tensor = model.subgraphs[0].tensors[span.tensor]
            values = constant(model, tensor)
            assert values is not None
            np.moveaxis(values, span.axis, 0)[span.start + np.array([1, 3])] = 0.0
            set_constant(model, tensor, values)

    pruned = prune_filters(model, 0.34, "l2")

    assert all({1, 3}.isdisjoint(group.kept.tolist()) for group in pruned.slimmed)
    assert _outputs(pruned.model, samples) == pytest.approx(_outputs(model, samples), abs=1e-5)


@pytest.mark.parametrize(("build", "channels"), [(plain_chain, 1), (depthwise_chain, 2), (residual, 1), (branches, 2)])
def test_a_refit_brings_outputs_nearer(build: Callable[[], ModelTree], channels: int) -> None:
    model = build()
    shape = tuple(int(size) for size in model.subgraphs[0].tensors[0].shape[1:])
    fit, check = normal(200, *shape, seed=4, scale=1.0), normal(50, *shape, seed=5, scale=1.0)
    pruned = prune_filters(model, 0.25, "l2")
    before = snr_db([_outputs(pruned.model, check)], [_outputs(model, check)])

    refit(model, pruned, fit)

    assert snr_db([_outputs(pruned.model, check)], [_outputs(model, check)]) > before + 2


def test_a_refit_follows_a_sum_that_two_layers_read() -> None:
    """As in every ResNet, where a strided convolution is the shortcut beside the block."""
    builder = ModelBuilder("forked")
    place = builder.input("x", (1, 8, 8, 1))
    stem = builder.conv("stem", place, normal(8, 3, 3, 1, seed=1), normal(8, seed=2), (1, 8, 8, 8))
    left = builder.conv("left", stem, normal(6, 3, 3, 8, seed=3), normal(6, seed=4), (1, 4, 4, 6), stride=2)
    right = builder.conv("right", stem, normal(6, 1, 1, 8, seed=5), normal(6, seed=6), (1, 4, 4, 6), stride=2)
    model = builder.finish([builder.add("sum", left, right, (1, 4, 4, 6))])
    samples = normal(40, 8, 8, 1, seed=7, scale=1.0)
    pruned = prune_filters(model, 0.25, "reconstruction", samples)
    before = snr_db([_outputs(pruned.model, samples)], [_outputs(model, samples)])

    refit(model, pruned, samples)

    assert snr_db([_outputs(pruned.model, samples)], [_outputs(model, samples)]) > before


def test_reconstruction_loses_less_than_norms_on_a_real_model() -> None:
    model = read_model(shared_file("mlperf_tiny/kws_float32.tflite"))
    with np.load(shared_file("mlperf_tiny/kws01_dev.npz")) as arrays:
        x = ((arrays["x"].astype(np.float32) - arrays["zero_point"]) * arrays["scale"]).astype(np.float32)
    fit, check = x[:120], x[120:240]
    wanted = _outputs(model, check).argmax(1)
    agreed = {}

    criteria: tuple[Criterion, ...] = ("l2", "reconstruction")
    for criterion in criteria:
        pruned = prune_filters(model, 0.25, criterion, fit)
        refit(model, pruned, fit)
        agreed[criterion] = float((_outputs(pruned.model, check).argmax(1) == wanted).mean())

    assert agreed["reconstruction"] > agreed["l2"] + 0.02
    assert agreed["reconstruction"] > 0.85


def test_norms_weigh_layers_alike() -> None:
    model = residual()
    shared = _free(model)[0]
    for span in shared.filters[:1]:
        tensor = model.subgraphs[0].tensors[span.tensor]
        values = constant(model, tensor)
        assert values is not None
        before = weight_importance(model, shared, "l1")
        set_constant(model, tensor, values * 100)

    assert weight_importance(model, shared, "l1") == pytest.approx(before, rel=1e-5)


def test_one_filter_is_always_kept() -> None:
    pruned = prune_filters(plain_chain(2), 0.99)

    assert [len(group.kept) for group in pruned.slimmed] == [1, 1]


def _one_channel() -> ModelTree:
    builder = ModelBuilder("one channel")
    place = builder.input("x", (1, 4, 4, 1))
    place = builder.conv("a", place, normal(1, 3, 3, 1), normal(1), (1, 4, 4, 1))
    place = builder.reshape("f", place, (1, 16))
    return builder.finish([builder.dense("d", place, normal(2, 16), normal(2), (1, 2))])


def _only_outputs() -> ModelTree:
    builder = ModelBuilder("one layer")
    place = builder.input("x", (1, 4))
    return builder.finish([builder.dense("d", place, normal(3, 4), normal(3), (1, 3))])


def _unknown_operator() -> ModelTree:
    builder = ModelBuilder("softmax between")
    place = builder.input("x", (1, 4))
    place = builder.softmax("s", builder.dense("d", place, normal(6, 4), normal(6), (1, 6)), (1, 6))
    return builder.finish([builder.dense("e", place, normal(3, 6), normal(3), (1, 3))])


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (_one_channel, "1 groups have too few filters"),
        (_only_outputs, "it is an output of the model"),
        (_unknown_operator, "SOFTMAX follows"),
    ],
)
def test_what_cannot_be_pruned_is_refused_with_the_reason(build: Callable[[], ModelTree], words: str) -> None:
    with pytest.raises(Rejected, match=words):
        prune_filters(build(), 0.5)


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, float("nan")])
def test_a_share_outside_of_0_to_1_is_refused(ratio: float) -> None:
    with pytest.raises(Rejected, match="share"):
        prune_filters(plain_chain(), ratio)


def test_reconstruction_without_samples_is_a_misuse() -> None:
    with pytest.raises(Misuse, match="needs samples"):
        prune_filters(plain_chain(), 0.5, "reconstruction")


def test_layers_with_shared_weights_are_left_alone() -> None:
    model = residual()
    graph = model.subgraphs[0]
    graph.operators[2].inputs[1] = graph.operators[1].inputs[1]  # both convolutions of the branch

    free = _free(model)

    assert all(not _names(model, [span.tensor for span in group.filters]) & {"in/weights"} for group in free)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("size", [7, 8])
def test_patches_times_weights_is_the_runtimes_convolution(stride: int, padding: Any, size: int) -> None:
    weights, bias = normal(4, 3, 3, 2, seed=1), normal(4, seed=2)
    out = -(-size // stride) if padding == "SAME" else (size - 3) // stride + 1
    builder = ModelBuilder("conv")
    place = builder.input("x", (1, size, size, 2))
    place = builder.conv("a", place, weights, bias, (1, out, out, 4), stride=stride, padding=padding, activation="NONE")
    model = builder.finish([place])
    samples = normal(3, size, size, 2, seed=3)

    seen = layer_patches(samples, model.subgraphs[0].operators[0], "CONV_2D", (3, 3))

    assert (seen @ weights.reshape(4, -1).T + bias).reshape(3, out, out, 4) == pytest.approx(
        _outputs(model, samples), abs=1e-5
    )
