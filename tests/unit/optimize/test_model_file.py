"""A model file is read whole or refused, made safe for other tools, and checked before work begins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regatta_fleet.examples.digits import MODEL
from regatta_fleet.optimize.model_file import (
    ModelTree,
    check_float,
    constant,
    model_bytes,
    normalize,
    operator_name,
    parse_model,
    read_model,
    schema,
    set_constant,
)
from regatta_protocol.errors import Rejected
from shared_data import shared_file
from tiny_models import plain_chain


def _operators(model: ModelTree) -> list[str]:
    return [operator_name(model, operator) for operator in model.subgraphs[0].operators]


def _tensor(model: ModelTree, name: str) -> Any:  # schema.TensorT
    return next(tensor for tensor in model.subgraphs[0].tensors if tensor.name in (name, name.encode()))


def test_a_model_survives_being_written_and_read() -> None:
    model = plain_chain()

    again = parse_model(model_bytes(model))

    assert _operators(again) == _operators(model)
    weights = constant(again, _tensor(again, "b/weights"))
    assert weights is not None
    assert (weights == constant(model, _tensor(model, "b/weights"))).all()


def _appended(model: ModelTree, size_error: int = 0) -> bytes:
    """Return the file with the first weights behind the flatbuffer, as files near 2 GiB have them."""
    tensor = _tensor(model, "a/weights")
    buffer = model.buffers[tensor.buffer]
    weights = bytes(buffer.data)
    buffer.data, buffer.offset, buffer.size = None, 1, 1  # written, so that the length is known
    length = len(model_bytes(model))
    buffer.offset, buffer.size = length, len(weights) + size_error
    return model_bytes(model) + weights


def test_weights_behind_the_flatbuffer_are_taken_in() -> None:
    model = parse_model(_appended(plain_chain()))

    weights = constant(model, _tensor(model, "a/weights"))
    assert weights is not None
    assert (weights == constant(plain_chain(), _tensor(plain_chain(), "a/weights"))).all()
    assert parse_model(model_bytes(model)) is not None


def test_weights_that_should_lie_behind_the_end_are_refused() -> None:
    with pytest.raises(Rejected, match="cut off: buffer"):
        parse_model(_appended(plain_chain(), size_error=1))


def test_weights_are_aligned_as_the_schema_asks() -> None:
    data = np.frombuffer(model_bytes(plain_chain()), np.uint8)
    packed = schema.Model.GetRootAsModel(data.tobytes(), 0)

    places = []
    for index in range(packed.BuffersLength()):
        weights = packed.Buffers(index).DataAsNumpy()
        if not isinstance(weights, int):
            places.append(weights.__array_interface__["data"][0] - _address(packed))

    assert len(places) > 5
    assert all(place % 16 == 0 for place in places)


def _address(packed: Any) -> int:  # schema.Model
    return int(np.frombuffer(packed._tab.Bytes, np.uint8).__array_interface__["data"][0])


@pytest.mark.parametrize("data", [b"", b"TFL3", b"\x00" * 100, b"GIF89a" * 20])
def test_what_is_no_model_is_refused(data: bytes) -> None:
    with pytest.raises(Rejected, match="no TFLite model"):
        parse_model(data, "cat.gif")


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.5, 0.9, 0.999])
def test_a_model_that_is_cut_off_is_refused(share: float) -> None:
    data = MODEL.read_bytes()

    with pytest.raises(Rejected, match=r"cut off|damaged|no TFLite"):
        parse_model(data[: int(len(data) * share)], "digits")


@settings(max_examples=40)
@given(place=st.integers(8, 4000), value=st.integers(0, 255))
def test_a_damaged_byte_is_refused_or_harmless(place: int, value: int) -> None:
    data = bytearray(model_bytes(plain_chain(2)))
    data[place % len(data)] = value

    try:
        model = parse_model(bytes(data))
    except Rejected:
        return
    assert model.subgraphs is not None


def test_an_old_file_gets_operator_codes_signature_and_names() -> None:
    model = plain_chain()
    model.signatureDefs = None
    names = _operators(model)
    for code in model.operatorCodes:
        code.builtinCode, code.deprecatedBuiltinCode = 0, code.builtinCode
    for tensor in model.subgraphs[0].tensors:
        tensor.name = b"same"

    changes = normalize(model)

    assert len(changes) == 3
    assert _operators(model) == names
    assert len({bytes(tensor.name) for tensor in model.subgraphs[0].tensors}) == len(model.subgraphs[0].tensors)
    assert normalize(model) == []


def test_real_files_are_read() -> None:
    model = read_model(shared_file("mlperf_tiny/pretrainedResnet.tflite"))

    assert _operators(model).count("ADD") == 3
    check_float(model, "resnet")


def test_a_quantized_file_is_refused_by_name() -> None:
    path = shared_file("mlperf_tiny/kws_ref_model.tflite")

    with pytest.raises(Rejected, match="quantized already"):
        check_float(read_model(path), path.name)


def _nan_weights(model: ModelTree) -> None:
    tensor = _tensor(model, "a/weights")
    values = constant(model, tensor)
    assert values is not None
    values[0] = np.nan
    set_constant(model, tensor, values)


def _dynamic(model: ModelTree) -> None:
    model.subgraphs[0].tensors[0].shapeSignature = np.array([-1, -1, 8, 1], np.int32)


def _two_signatures(model: ModelTree) -> None:
    model.signatureDefs = model.signatureDefs * 2


def _two_graphs(model: ModelTree) -> None:
    model.subgraphs = model.subgraphs * 2


def _integer_input(model: ModelTree) -> None:
    model.subgraphs[0].tensors[0].type = schema.TensorType.INT32


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_nan_weights, "'a/weights' has 9 weights that are NaN"),
        (_dynamic, "'x' has a dynamic shape"),
        (_two_signatures, "2 signatures"),
        (_two_graphs, "2 subgraphs"),
        (_integer_input, "'x' is INT32"),
    ],
)
def test_what_cannot_be_optimized_is_refused_by_tensor(change: Callable[[ModelTree], None], words: str) -> None:
    model = plain_chain()
    change(model)

    with pytest.raises(Rejected, match=words):
        check_float(model, "model.tflite")


def test_a_shared_buffer_is_not_changed_for_the_other(tmp_path: Path) -> None:
    model = plain_chain(6)
    first, second = _tensor(model, "a/bias"), _tensor(model, "b/bias")
    second.buffer = first.buffer
    before = constant(model, second)

    set_constant(model, first, np.zeros(6, np.float32))

    after = constant(model, second)
    assert before is not None and after is not None
    assert (after == before).all()
