"""Tensors survive both encodings; damaged bytes are refused and never crash."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from regatta_agent.serving import tensors
from regatta_protocol.errors import Rejected

NUMERIC = [name for name in tensors.DATATYPES if name != "BYTES"]
shapes = hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)


@st.composite
def numeric_tensors(draw: st.DrawFn, *, finite: bool = False) -> tuple[str, tensors.Array]:
    datatype = draw(st.sampled_from(NUMERIC))
    dtype = tensors.DATATYPES[datatype]
    elements: dict[str, Any] | None = {"allow_nan": False, "allow_infinity": False} if finite else None
    array = draw(hnp.arrays(dtype, draw(shapes), elements=elements if dtype.kind == "f" else None))
    return datatype, array


texts = st.lists(st.binary(max_size=40), max_size=12).map(lambda items: np.array([*items, None], dtype=object)[:-1])


@given(numeric_tensors())
def test_binary_is_lossless(pair: tuple[str, tensors.Array]) -> None:
    """Every element type comes back bit by bit, NaN and infinity included."""
    datatype, array = pair

    back = tensors.decode_binary(datatype, array.shape, tensors.encode_binary(array))

    assert back.tobytes() == array.tobytes()
    assert (back.shape, tensors.datatype_of(back.dtype)) == (array.shape, datatype)


@given(numeric_tensors(finite=True))
def test_json_is_lossless(pair: tuple[str, tensors.Array]) -> None:
    """Finite numbers come back exactly through JSON text."""
    datatype, array = pair

    back = tensors.decode_json(datatype, array.shape, json.loads(json.dumps(tensors.encode_json(array))))

    np.testing.assert_array_equal(back, array)
    assert back.dtype == array.dtype


@given(texts)
def test_bytes_tensors_are_lossless(array: tensors.Array) -> None:
    """Strings of any bytes come back from the binary form."""
    back = tensors.decode_binary("BYTES", array.shape, tensors.encode_binary(array))

    assert back.tolist() == array.tolist()


@given(st.sampled_from(list(tensors.DATATYPES)), st.lists(st.integers(-1, 5), max_size=4), st.binary(max_size=200))
def test_any_bytes_are_decoded_or_refused(datatype: str, shape: list[int], data: bytes) -> None:
    """No bytes crash the decoder, and what it accepts encodes to the same bytes."""
    with contextlib.suppress(Rejected):
        back = tensors.decode_binary(datatype, shape, data)

        assert datatype == "BOOL" or tensors.encode_binary(back) == data


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=12,
)


@given(st.sampled_from(list(tensors.DATATYPES)), st.lists(st.integers(0, 4), max_size=3), json_values)
def test_any_json_is_decoded_or_refused(datatype: str, shape: list[int], data: object) -> None:
    """No JSON value crashes the decoder."""
    with contextlib.suppress(Rejected):
        assert tensors.decode_json(datatype, shape, data).shape == tuple(shape)


@pytest.mark.parametrize(
    ("datatype", "shape", "data"),
    [
        ("INT8", [2], [1, 200]),
        ("UINT8", [1], [-1]),
        ("UINT8", [1], [1.5]),
        ("FP32", [2], [1.0]),
        ("FP32", [2], [[1.0], [2.0, 3.0]]),
        ("FP32", [1], ["1"]),
        ("FP32", [1], [None]),
        ("FP32", [1], 1.0),
        ("BOOL", [1], [1]),
        ("BYTES", [1], [1]),
        ("BYTES", [1], ["a", "b"]),
        ("FLOAT", [1], [1.0]),
    ],
)
def test_wrong_json_is_refused(datatype: str, shape: list[int], data: object) -> None:
    """A wrong range, type, count or datatype is an error that says so."""
    with pytest.raises(Rejected):
        tensors.decode_json(datatype, shape, data)


def test_a_huge_shape_is_refused_before_anything_is_built() -> None:
    """A shape of many elements with few bytes costs nothing."""
    with pytest.raises(Rejected):
        tensors.decode_binary("BYTES", [1 << 30], b"1234")
    with pytest.raises(Rejected, match="elements"):
        tensors.decode_binary("FP32", [1 << 20, 1 << 20, 1 << 20], b"")
    with pytest.raises(Rejected, match="sizes"):
        tensors.element_count([1] * 17)


def test_nan_cannot_go_as_json() -> None:
    """An output that JSON cannot carry is refused with what to do."""
    with pytest.raises(Rejected, match="binary_data"):
        tensors.encode_json(np.array([np.nan], dtype=np.float32))


def test_a_sum_that_overflows_is_still_finite() -> None:
    """Large finite elements are not taken for infinity."""
    assert tensors.all_finite(np.full(4, 3e38, dtype=np.float32))
    assert not tensors.all_finite(np.array([np.inf, -np.inf], dtype=np.float32))
