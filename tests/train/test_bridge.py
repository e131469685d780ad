"""A .tflite computes in PyTorch what it computes in the runtime, and takes its weights back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs PyTorch: pip install 'regatta-edge[train]'")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from regatta_fleet.optimize.activations import record  # noqa: E402
from regatta_fleet.optimize.model_builder import ModelBuilder  # noqa: E402
from regatta_fleet.optimize.model_file import ModelTree, model_bytes, parse_model, read_model, schema  # noqa: E402
from regatta_fleet.optimize.train.bridge import load_network, with_weights  # noqa: E402
from regatta_protocol.errors import Rejected  # noqa: E402
from shared_data import shared_file  # noqa: E402
from tiny_models import Floats, branches, depthwise_chain, normal, plain_chain, residual  # noqa: E402


def _runtime(model: ModelTree, samples: Floats) -> Floats:
    output = int(model.subgraphs[0].outputs[0])
    return record(model_bytes(model), samples, [output])[output]


def _bridge(model: ModelTree, samples: Floats) -> Floats:
    with torch.no_grad():
        answers: Floats = load_network(model)(torch.from_numpy(samples)).numpy()
    return answers


def _samples(model: ModelTree, count: int = 5) -> Floats:
    return normal(count, *(int(size) for size in model.subgraphs[0].tensors[0].shape[1:]), seed=3, scale=1.0)


@pytest.mark.parametrize("file", ["kws_float32", "vww_96_float", "pretrainedResnet", "ad01_fp32"])
def test_real_models_answer_alike(file: str) -> None:
    model = read_model(shared_file(f"mlperf_tiny/{file}.tflite"))
    samples = _samples(model, 3)

    found = _bridge(model, samples)

    assert found == pytest.approx(_runtime(model, samples), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("build", [plain_chain, depthwise_chain, residual, branches])
def test_small_models_answer_alike_on_a_whole_batch(build: Callable[[], ModelTree]) -> None:
    model = build()
    samples = _samples(model)

    assert _bridge(model, samples) == pytest.approx(_runtime(model, samples), abs=1e-5)


def _then(kind: str, shape: tuple[int, ...], options: Any = None, *constants: Any) -> ModelTree:
    """A convolution on [1, 6, 5, 2] with 4 filters, and an operator after it."""
    builder = ModelBuilder(kind)
    place = builder.input("x", (1, 6, 5, 2))
    place = builder.conv(
        "a", place, normal(4, 3, 3, 2, seed=1), normal(4, seed=2), (1, 6, 5, 4), activation="NONE"
    )  # fmt: skip
    inputs = [place, *(builder.constant(f"c{index}", values) for index, values in enumerate(constants))]
    return builder.finish([builder.operator(kind, inputs, "y", shape, options)])


def _options(kind: str, **values: Any) -> Any:
    options = getattr(schema, f"{kind}OptionsT")()
    for name, value in values.items():
        setattr(options, name, value)
    return options


_POOL = {"filterHeight": 3, "filterWidth": 2, "strideH": 2, "strideW": 2, "padding": schema.Padding.SAME}
_AXES = np.array([1, 2], np.int32)
_EDGES = np.array([[0, 0], [1, 2], [0, 1], [1, 0]], np.int32)


@pytest.mark.parametrize(
    "model",
    [
        _then("AVERAGE_POOL_2D", (1, 3, 3, 4), _options("Pool2D", **_POOL)),
        _then("MAX_POOL_2D", (1, 3, 3, 4), _options("Pool2D", **_POOL)),
        _then("MEAN", (1, 4), _options("Reducer", keepDims=False), _AXES),
        _then("SUM", (1, 1, 1, 4), _options("Reducer", keepDims=True), _AXES),
        _then("PAD", (1, 9, 6, 5), _options("Pad"), _EDGES),
        _then("TRANSPOSE", (1, 4, 6, 5), _options("Transpose"), np.array([0, 3, 1, 2], np.int32)),
        _then("RESHAPE", (1, 5, 24), None, np.array([1, 5, 24], np.int32)),
        _then("RELU6", (1, 6, 5, 4)),
        _then("LOGISTIC", (1, 6, 5, 4)),
        _then("HARD_SWISH", (1, 6, 5, 4)),
        _then("LEAKY_RELU", (1, 6, 5, 4), _options("LeakyRelu", alpha=0.2)),
        _then("PRELU", (1, 6, 5, 4), None, normal(1, 1, 4, seed=5)),
        _then("MUL", (1, 6, 5, 4), _options("Mul", fusedActivationFunction=1), normal(1, 1, 1, 4, seed=5)),
        _then("SUB", (1, 6, 5, 4), _options("Sub"), normal(1, 6, 5, 4, seed=5)),
        _then("CONCATENATION", (1, 6, 7, 4), _options("Concatenation", axis=2), normal(1, 6, 2, 4, seed=5)),
    ],
    ids=lambda model: model.description.decode(),
)
def test_each_operator_is_the_runtimes(model: ModelTree) -> None:
    """With odd sizes, so that padding and edges show."""
    samples = _samples(model, 2)

    assert _bridge(model, samples) == pytest.approx(_runtime(model, samples), abs=1e-5)


@settings(max_examples=20)
@given(
    size=st.integers(3, 7), kernel=st.integers(1, 3), stride=st.integers(1, 3),
    padding=st.sampled_from(["SAME", "VALID"]), deep=st.booleans(),
)  # fmt: skip
def test_convolutions_of_any_geometry_are_the_runtimes(
    size: int, kernel: int, stride: int, padding: Any, deep: bool
) -> None:
    out = -(-size // stride) if padding == "SAME" else -(-(size - kernel + 1) // stride)
    builder = ModelBuilder("conv")
    place = builder.input("x", (1, size, size, 3))
    weights = normal(1, kernel, kernel, 3, seed=1) if deep else normal(3, kernel, kernel, 3, seed=1)
    add = builder.depthwise if deep else builder.conv
    place = add("a", place, weights, normal(3, seed=2), (1, out, out, 3), stride=stride, padding=padding)
    model = builder.finish([place])
    samples = _samples(model, 2)

    assert _bridge(model, samples) == pytest.approx(_runtime(model, samples), abs=1e-5)


@pytest.mark.parametrize("build", [depthwise_chain, branches])
def test_trained_weights_come_back_into_the_file(build: Callable[[], ModelTree]) -> None:
    """The file answers as the trained network does; untrained, not a byte of it changes."""
    model = build()
    network = load_network(model)
    untouched = model_bytes(with_weights(model, network))
    with torch.no_grad():
        for values in network.parameters():
            values.add_(0.1 * torch.randn(values.shape, generator=torch.Generator().manual_seed(1)))
    samples = _samples(model)

    trained = parse_model(model_bytes(with_weights(model, network)))

    assert untouched == model_bytes(model)
    wanted = network(torch.from_numpy(samples)).detach().numpy()
    assert _runtime(trained, samples) == pytest.approx(wanted, abs=1e-5)


def test_logits_are_what_goes_into_the_softmax() -> None:
    network = load_network(plain_chain())
    samples = torch.from_numpy(normal(4, 8, 8, 1, scale=1.0))

    logits = network.logits(samples)

    assert torch.allclose(torch.softmax(logits, 1), network(samples), atol=1e-6)
    assert not torch.allclose(logits.sum(1), torch.ones(4))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (_then("FLOOR", (1, 6, 5, 4)), r"operator FLOOR, which makes 'y': it is not known here"),
        (_then("TRANSPOSE", (6, 1, 5, 4), None, np.array([1, 0, 2, 3], np.int32)), r"'y'.*no batch of 1"),
        (_then("RESHAPE", (120, 1), None, np.array([120, 1], np.int32)), r"'y'.*no batch of 1"),
    ],
)
def test_what_cannot_be_trained_is_named(model: ModelTree, words: str) -> None:
    with pytest.raises(Rejected, match=words):
        load_network(model)


def test_weights_that_became_nan_are_refused_by_name() -> None:
    model = plain_chain()
    network = load_network(model)
    with torch.no_grad():
        next(iter(network.parameters()))[0] = torch.nan

    with pytest.raises(Rejected, match=r"diverged: tensor 'a/(weights|bias)'"):
        with_weights(model, network)
