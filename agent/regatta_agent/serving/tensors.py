"""Tensors as the Open Inference Protocol carries them: JSON numbers, or the binary extension's bytes. Pure, numpy only.

Binary layout (Triton's binary tensor data extension): elements in row-major order, little-endian, without padding;
BOOL is one byte, 0 or 1; BYTES elements are a little-endian u32 length and then that many bytes. Client and worker
share this module, so both keep the same bounds.

Invariant: no function allocates more than its input (or the array given) accounts for; a shape is checked against
the bytes that are there before anything is built.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from regatta_protocol.errors import Rejected

__all__ = [
    "DATATYPES",
    "MAX_DIMENSIONS",
    "Array",
    "all_finite",
    "check_size",
    "datatype_of",
    "decode_binary",
    "decode_json",
    "element_count",
    "encode_binary",
    "encode_json",
]

Array = npt.NDArray[Any]

MAX_DIMENSIONS = 16  # numpy's own limit is 32; no TFLite kernel takes more than 8
_MAX_ELEMENTS = 1 << 31  # a flatbuffer ends at 2 GiB
DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(object),
}
_NAMES = {dtype.newbyteorder("="): name for name, dtype in DATATYPES.items()}
_LENGTH = struct.Struct("<I")


def datatype_of(dtype: npt.DTypeLike) -> str:
    """Return the protocol's name of a numpy type, for example FP32 of float32; strings and objects are BYTES.

    Raises:
        Rejected: when the protocol has no name for it.
    """
    kind = np.dtype(dtype)
    if kind.kind in "SU":
        return "BYTES"
    name = _NAMES.get(kind.newbyteorder("="))
    if name is None:
        raise Rejected(f"a tensor of {kind} cannot be sent: the protocol knows {', '.join(DATATYPES)}")
    return name


def element_count(shape: Sequence[int]) -> int:
    """Return the number of elements of `shape`.

    Raises:
        Rejected: when it has too many dimensions, a negative one, or too many elements.
    """
    if len(shape) > MAX_DIMENSIONS or min(shape, default=0) < 0:
        raise Rejected(f"shape {list(shape)[:32]} is not valid: up to {MAX_DIMENSIONS} sizes of 0 or more")
    count = math.prod(shape)
    if count > _MAX_ELEMENTS:
        raise Rejected(f"shape {list(shape)} has {count} elements and {_MAX_ELEMENTS} is the limit")
    return count


def all_finite(array: Array) -> bool:
    """Return whether no element is NaN or infinite. Integers always are finite."""
    if array.dtype.kind != "f":
        return True
    with np.errstate(all="ignore"):
        # One pass without a temporary; a sum may overflow though every element is finite, so then look closely.
        return math.isfinite(float(array.sum())) or bool(np.isfinite(array).all())


def _dtype_of(datatype: str) -> np.dtype[Any]:
    dtype = DATATYPES.get(datatype)
    if dtype is None:
        raise Rejected(f"datatype {datatype[:40]!r} is not known: use one of {', '.join(DATATYPES)}")
    return dtype


def check_size(datatype: str, shape: Sequence[int], size_bytes: int) -> None:
    """Do nothing when a tensor has so many bytes; what BYTES has is known when it is decoded.

    Raises:
        Rejected: otherwise.
    """
    wanted = element_count(shape) * _dtype_of(datatype).itemsize
    if datatype != "BYTES" and size_bytes != wanted:
        raise Rejected(
            f"{datatype} of shape {list(shape)} needs {wanted} bytes and {size_bytes} came: "
            "check binary_data_size and that the whole tensor was sent"
        )


def decode_binary(datatype: str, shape: Sequence[int], data: bytes | memoryview) -> Array:
    """Return the tensor in `data`; it shares memory with `data` except for BOOL and BYTES.

    Raises:
        Rejected: when `data` has not exactly the bytes that datatype and shape ask for.
    """
    if datatype == "BYTES":
        return _decode_bytes(element_count(shape), memoryview(data)).reshape(shape)
    check_size(datatype, shape, len(data))
    if datatype == "BOOL":
        flags: Array = np.frombuffer(data, dtype=np.uint8) != 0
        return flags.reshape(shape)
    return np.frombuffer(data, dtype=DATATYPES[datatype]).reshape(shape)


def _decode_bytes(count: int, data: memoryview) -> Array:
    if count * _LENGTH.size > len(data):
        raise Rejected(f"{count} BYTES elements need at least {count * _LENGTH.size} bytes and {len(data)} came")
    elements = np.empty(count, dtype=object)
    offset = 0
    for index in range(count):
        if offset + _LENGTH.size > len(data):
            raise Rejected(f"BYTES element {index} of {count} is cut off at byte {offset}")
        (length,) = _LENGTH.unpack_from(data, offset)
        offset += _LENGTH.size
        if offset + length > len(data):
            raise Rejected(f"BYTES element {index} says {length} bytes and {len(data) - offset} are left")
        elements[index] = bytes(data[offset : offset + length])
        offset += length
    if offset != len(data):
        raise Rejected(f"{len(data) - offset} bytes are left after {count} BYTES elements")
    return elements


def decode_json(datatype: str, shape: Sequence[int], data: object) -> Array:
    """Return the tensor in parsed JSON `data`, which is flat or nested, in row-major order.

    Raises:
        Rejected: when it has not as many elements as `shape`, or one that `datatype` cannot hold.
    """
    dtype, count = _dtype_of(datatype), element_count(shape)
    if not isinstance(data, list):
        raise Rejected(f"the data of a tensor is a JSON array, not {type(data).__name__}")
    if datatype == "BYTES":
        return _decode_texts(count, data).reshape(shape)
    try:
        array = np.asarray(data)
        if datatype == "UINT64" and array.dtype.kind == "f":  # numpy's type of 2**63 beside 0; exactness is lost there
            array = _exact_integers(data)
    except (ValueError, OverflowError, RecursionError) as err:
        raise Rejected(f"the data of a tensor of shape {list(shape)} is ragged or too deeply nested") from err
    if array.size != count:
        raise Rejected(f"shape {list(shape)} needs {count} elements and {array.size} came")
    if count == 0:
        return np.empty(shape, dtype=dtype)
    _check_kind(datatype, dtype, array)
    with np.errstate(over="ignore"):
        typed: Array = array.astype(dtype, copy=False)
    return typed.reshape(shape)


def _exact_integers(data: list[Any]) -> Array:
    array = np.asarray(data, dtype=object)
    if any(type(element) is not int for element in array.ravel()):
        raise Rejected("the data of a UINT64 tensor must be integers")
    typed: Array = array.astype(np.uint64)  # OverflowError when one does not fit
    return typed


def _check_kind(datatype: str, dtype: np.dtype[Any], array: Array) -> None:
    fits = {"b": "b", "i": "iu", "u": "iu", "f": "fiu"}[dtype.kind]
    if array.dtype.kind not in fits:
        raise Rejected(f"the data of a {datatype} tensor must be {'booleans' if fits == 'b' else 'numbers'} that fit")
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise Rejected(f"the data of a {datatype} tensor must lie in [{limits.min}, {limits.max}]")


def _decode_texts(count: int, data: list[Any]) -> Array:
    flat = np.empty(count, dtype=object)
    stack, index = [iter(data)], 0
    while stack:
        element = next(stack[-1], stack)
        if element is stack:
            stack.pop()
        elif isinstance(element, list):
            if len(stack) >= MAX_DIMENSIONS:
                raise Rejected("the data of a BYTES tensor is too deeply nested")
            stack.append(iter(element))
        elif not isinstance(element, str):
            raise Rejected(f"the data of a BYTES tensor must be strings, not {type(element).__name__}")
        elif index >= count:
            raise Rejected(f"the data of a BYTES tensor has more than the {count} elements of its shape")
        else:
            flat[index] = element.encode()
            index += 1
    if index != count:
        raise Rejected(f"the data of a BYTES tensor has {index} elements and its shape {count}")
    return flat


def encode_binary(array: Array) -> bytes:
    """Return the tensor's bytes; elements of an object array are bytes or text."""
    if array.dtype.kind in "OSU":
        parts = [element.encode() if isinstance(element, str) else bytes(element) for element in array.ravel()]
        return b"".join(piece for part in parts for piece in (_LENGTH.pack(len(part)), part))
    dtype = array.dtype.newbyteorder("<")
    return array.astype(dtype, copy=False).tobytes()


def encode_json(array: Array) -> list[Any]:
    """Return the tensor's elements, flat, for JSON.

    Raises:
        Rejected: when JSON cannot carry one of them: NaN, infinity, or bytes that are not UTF-8.
    """
    if array.dtype.kind in "OSU":
        try:
            return [item.decode() if isinstance(item, bytes) else str(item) for item in array.ravel().tolist()]
        except UnicodeDecodeError as err:
            raise Rejected("a BYTES output is not UTF-8: ask for it with binary_data") from err
    if not all_finite(array):
        raise Rejected("an output holds NaN or infinity, which JSON cannot carry: ask for it with binary_data")
    elements: list[Any] = array.ravel().tolist()
    return elements
