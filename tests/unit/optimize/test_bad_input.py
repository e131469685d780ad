"""What cannot be optimized is refused in words that name tensor, operator or array, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regatta_fleet.optimize.model_builder import ModelBuilder
from regatta_fleet.optimize.model_file import ModelTree, constant, model_bytes, schema, set_constant
from regatta_fleet.optimize.pipeline import optimize
from regatta_fleet.optimize.trials import VARIANT_SETS, parse_variants
from regatta_protocol.errors import Rejected
from tiny_models import Floats, normal, plain_chain, write_samples_file, write_tree


def _weights(model: ModelTree) -> Any:  # schema.TensorT
    return model.subgraphs[0].tensors[model.subgraphs[0].operators[0].inputs[1]]


def _custom_operator() -> ModelTree:
    model = plain_chain()
    code = model.operatorCodes[model.subgraphs[0].operators[1].opcodeIndex]
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
    code.customCode = b"FlexErf"
    return model


def _dynamic_shape() -> ModelTree:
    model = plain_chain()
    model.subgraphs[0].tensors[0].shapeSignature = np.array([1, -1, 8, 1], np.int32)
    return model


def _two_signatures() -> ModelTree:
    model = plain_chain()
    model.signatureDefs = model.signatureDefs * 2
    return model


def _two_graphs() -> ModelTree:
    model = plain_chain()
    model.subgraphs = model.subgraphs * 2
    return model


def _nan_weights() -> ModelTree:
    model = plain_chain()
    values = constant(model, _weights(model))
    assert values is not None
    values[0, 0] = np.nan
    set_constant(model, _weights(model), values)
    return model


def _float16_weights() -> ModelTree:
    model = plain_chain()
    graph = model.subgraphs[0]
    weights = _weights(model)
    values = constant(model, weights)
    assert values is not None
    weights.type = schema.TensorType.FLOAT16
    set_constant(model, weights, values.astype(np.float16))
    code, cast, wide = schema.OperatorCodeT(), schema.OperatorT(), schema.TensorT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.DEQUANTIZE
    code.version = 2  # of float16
    model.operatorCodes.append(code)
    wide.name, wide.shape, wide.type, wide.buffer = b"wide", list(values.shape), schema.TensorType.FLOAT32, 0
    graph.tensors.append(wide)
    cast.opcodeIndex = len(model.operatorCodes) - 1
    cast.inputs, cast.outputs = [graph.operators[0].inputs[1]], [len(graph.tensors) - 1]
    graph.operators[0].inputs[1] = len(graph.tensors) - 1
    graph.operators.insert(0, cast)
    return model


def _two_inputs() -> ModelTree:
    builder = ModelBuilder("two inputs")
    left, right = builder.input("left", (1, 8)), builder.input("right", (1, 8))
    return builder.finish([builder.add("sum", left, right, (1, 8))])


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (_custom_operator, "FlexErf"),
        (_dynamic_shape, r"'x' has a dynamic shape"),
        (_two_signatures, "2 signatures"),
        (_two_graphs, "2 subgraphs"),
        (_nan_weights, r"'a/weights' has 3 weights that are NaN"),
        (_float16_weights, r"float16 already \(tensor 'a/weights'\)"),
        (_two_inputs, "2 inputs"),
    ],
)
def test_a_model_that_cannot_be_optimized_leaves_no_bundle(
    build: Callable[[], ModelTree], words: str, tmp_path: Path
) -> None:
    model = build()
    shape = [int(size) for size in model.subgraphs[0].tensors[model.subgraphs[0].inputs[0]].shape[1:]]
    samples = write_samples_file(tmp_path / "s.npz", 8, *shape)

    with pytest.raises(Rejected, match=words):
        optimize(write_tree(tmp_path / "m.tflite", model), samples, tmp_path / "bundle", variants=("int8",))

    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.tflite", "s.npz"]


def _with_nan() -> Floats:
    x = normal(8, 8, 8, 1)
    x[3, 0, 0, 0] = np.nan
    return x


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (normal(0, 8, 8, 1), r"'x' is float32 of shape \[0, 8, 8, 1\]"),
        (normal(1, 8, 8, 1), "1 sample cannot serve both"),
        (normal(8, 8, 8), r"s.npz: .*\[8, 8\], the model's input wants \[8, 8, 1\]"),
        (normal(8, 8, 8, 3), r"\[8, 8, 3\], the model's input wants \[8, 8, 1\]"),
        (_with_nan(), "first in sample 3"),
    ],
)
def test_samples_that_cannot_calibrate_leave_no_bundle(x: Floats, words: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", x=x)

    with pytest.raises(Rejected, match=words):
        optimize(write_tree(tmp_path / "m.tflite", plain_chain()), tmp_path / "s.npz", tmp_path / "bundle")

    assert not (tmp_path / "bundle").exists()


def test_a_file_that_is_cut_off_leaves_no_bundle(tmp_path: Path) -> None:
    content = model_bytes(plain_chain())
    (tmp_path / "m.tflite").write_bytes(content[: len(content) // 2])

    with pytest.raises(Rejected):
        optimize(tmp_path / "m.tflite", write_samples_file(tmp_path / "s.npz", 8, 8, 8, 1), tmp_path / "bundle")

    assert not (tmp_path / "bundle").exists()


def test_a_scheme_that_the_model_does_not_take_is_refused_alone(tmp_path: Path) -> None:
    """A model of a softmax has nothing to quantize: float32 is still a bundle, and the report says why it is alone."""
    builder = ModelBuilder("softmax")
    model = builder.finish([builder.softmax("s", builder.input("x", (1, 6)), (1, 6))])
    samples = write_samples_file(tmp_path / "s.npz", 8, 6)

    report = optimize(
        write_tree(tmp_path / "m.tflite", model), samples, tmp_path / "bundle", variants=("int8", "float16", "mixed")
    )

    reasons = {variant.name: variant.reason or "" for variant in report.variants}
    assert report.recommended == "float32"
    assert "operators: SOFTMAX" in reasons["int8"] and "operators: SOFTMAX" in reasons["float16"]
    assert "no layers" in reasons["mixed"]


@pytest.mark.parametrize(
    ("text", "variants"),
    [
        ("quick", ("int8", "int8-pruned")),
        ("all", VARIANT_SETS["all"]),
        ("int8", ("int8",)),
        ("mixed, float16,mixed", ("mixed", "float16")),
    ],
)
def test_variants_are_chosen_by_set_or_name(text: str, variants: tuple[str, ...]) -> None:
    assert parse_variants(text) == variants


@pytest.mark.parametrize("text", ["int3", "", "int8,", "quick,int8"])
def test_an_unknown_variant_is_refused_with_those_that_there_are(text: str) -> None:
    with pytest.raises(Rejected, match=r"there is no variant .*standard.*int4-weights"):
        parse_variants(text)
