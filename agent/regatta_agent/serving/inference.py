"""An infer request of the Open Inference Protocol v2, from the bytes of its body; and the answer's bytes. Pure.

The body is JSON, or (binary tensor data extension) JSON of `Inference-Header-Content-Length` bytes and then the
tensors whose parameters have `binary_data_size`, in the order of the inputs, with nothing left over. A header length
of 0 is the extension's raw form: the whole body is the one input of the model, and all outputs come back binary.

What tensors mean to a model is interface.py's; how bytes arrive is http.py's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from regatta_agent.serving.header import InputEntry, read_header
from regatta_agent.serving.tensors import (
    Array,
    check_size,
    datatype_of,
    decode_binary,
    decode_json,
    encode_binary,
    encode_json,
)
from regatta_agent.serving.waiting import DEFAULT_PRIORITY, LOWEST_PRIORITY
from regatta_protocol.errors import Rejected

__all__ = ["InferRequest", "NamedTensor", "RegionSlice", "SharedMemory", "WantedOutput", "parse_infer", "render_infer"]

MAX_CLASSES = 1000
_MAX_TIMEOUT_US = 3_600_000_000
_MAX_JSON_BYTES = 8 * 1024 * 1024  # parsed, `{},{},…` takes fifty times as much memory
_KEPT_HEADERS = 32  # a client sends the same JSON part with each request that has no id of its own
_KEPT_HEADER_BYTES = 4096


# What follows is made for each request, and so tuples: frozen dataclasses take several times as long to make.


class NamedTensor(NamedTuple):
    name: str
    datatype: str
    array: Array


class SharedMemory(Protocol):
    """Where tensors come from and go to that are in a region; see shared_memory.py, also for what it raises."""

    def read(self, name: str, offset: int, size: int) -> memoryview: ...

    def write(self, name: str, offset: int, size: int, data: bytes) -> None: ...


class RegionSlice(NamedTuple):
    """`size` bytes from `offset` of a registered region."""

    name: str
    offset: int
    size: int


class WantedOutput(NamedTuple):
    """An output that the request names. `classes` > 0 asks for the top classes in place of the tensor.

    `region`: the output goes there, and not into the answer.
    """

    name: str
    binary: bool
    classes: int = 0
    region: RegionSlice | None = None


class InferRequest(NamedTuple):
    """A checked request, not yet held against a model.

    `raw` is the whole body when it came in the extension's raw form (inputs is empty then). `outputs` empty: all.
    """

    id: str | None
    inputs: tuple[NamedTensor, ...]
    outputs: tuple[WantedOutput, ...]
    binary_default: bool
    raw: memoryview | None = None
    priority: int = DEFAULT_PRIORITY  # 1 is the highest
    timeout_us: int | None = None  # from its arrival; it is not computed after that
    processed: bool = False  # the input is a picture or a sound, and the answer a document (regatta_agent.processing)
    stacked: bool = False  # inputs hold many samples along their first dimension, computed one after another


def parse_infer(
    body: bytes | memoryview, header_length: bytes | None, shared: SharedMemory | None = None
) -> InferRequest:
    """Return the request in `body`; its arrays share memory with `body`.

    Args:
        body: the whole HTTP body, bounded by the caller.
        header_length: the text of Inference-Header-Content-Length, or None when the header is missing.
        shared: the registered regions, or None where the request may name none.

    Raises:
        Rejected: when it is no infer request; the text says which field is wrong.
    """
    length = _header_length(header_length, len(body))
    if length == 0 and header_length is not None:
        return InferRequest(None, (), (), binary_default=True, raw=memoryview(body))
    if length > _MAX_JSON_BYTES:
        raise Rejected(f"{length} bytes of JSON are over the limit of {_MAX_JSON_BYTES}: send tensors as binary data")
    read = _read_again if header_length is not None and length <= _KEPT_HEADER_BYTES else _read_header
    tensors, request = read(bytes(body[:length]), shared is not None)
    rest = memoryview(body)[length:]
    inputs: list[NamedTensor] = []
    for tensor in tensors:
        array, rest = _decode(tensor, rest, has_binary=header_length is not None, shared=shared)
        inputs.append(NamedTensor(tensor.name, tensor.datatype, array))
    if rest:
        raise Rejected(f"{len(rest)} bytes follow the last input: binary_data_size and the body do not agree")
    return request._replace(inputs=tuple(inputs))


def _read_header(text: bytes, offered: bool) -> tuple[tuple[InputEntry, ...], InferRequest]:
    """Return the inputs that the JSON part describes, and the request but for them; `offered`: shared memory is."""
    document = read_header(text)
    binary_default = _flag(document.parameters, "binary_data_output", default=False)
    outputs = tuple(
        WantedOutput(
            output.name,
            _flag(output.parameters, "binary_data", default=binary_default),
            _classes(output.name, output.parameters),
            _region("output", output.name, output.parameters, offered=offered),
        )
        for output in document.outputs
    )
    processed = _flag(document.parameters, "processed", default=False)
    stacked = _flag(document.parameters, "stacked", default=False)
    if processed and stacked:
        raise Rejected("a request is processed or stacked, not both: pictures and sounds are sent one by one")
    request = InferRequest(
        document.id,
        (),
        outputs,
        binary_default,
        priority=_whole(document.parameters, "priority", LOWEST_PRIORITY) or DEFAULT_PRIORITY,
        timeout_us=_whole(document.parameters, "timeout", _MAX_TIMEOUT_US) or None,
        processed=processed,
        stacked=stacked,
    )
    return tuple(document.inputs), request


_read_again = lru_cache(_KEPT_HEADERS)(_read_header)


def _header_length(text: bytes | None, body_bytes: int) -> int:
    if text is None:
        return body_bytes
    if not text.isdigit() or len(text) > 12 or int(text) > body_bytes:
        raise Rejected(
            f"Inference-Header-Content-Length {text[:32]!r} is not valid: give the length of the JSON part, "
            f"at most the body's {body_bytes} bytes"
        )
    return int(text)


def _decode(
    tensor: InputEntry, rest: memoryview, *, has_binary: bool, shared: SharedMemory | None
) -> tuple[Array, memoryview]:
    """Return the input's array and what is left of the binary part."""
    region = _region("input", tensor.name, tensor.parameters, offered=shared is not None)
    size = tensor.parameters.get("binary_data_size")
    try:
        if region is not None and shared is not None:
            if size is not None or tensor.data is not None:
                raise Rejected("shared_memory_region is given beside data or binary_data_size: use one")
            check_size(tensor.datatype, tensor.shape, region.size)
            return decode_binary(
                tensor.datatype, tensor.shape, shared.read(region.name, region.offset, region.size)
            ), rest
        if size is None:
            if tensor.data is None:
                raise Rejected("there is no data: give data, or binary_data_size and the bytes")
            return decode_json(tensor.datatype, tensor.shape, tensor.data), rest
        if tensor.data is not None:
            raise Rejected("data and binary_data_size are both given: use one")
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise Rejected("binary_data_size must be a number of bytes")
        if not has_binary:
            raise Rejected("binary_data_size is given but the header Inference-Header-Content-Length is missing")
        if size > len(rest):
            raise Rejected(f"binary_data_size is {size} and the body has {len(rest)} bytes left: it is cut off")
        return decode_binary(tensor.datatype, tensor.shape, rest[:size]), rest[size:]
    except Rejected as err:
        raise Rejected(f"input {tensor.name!r}: {err}") from err


def _flag(parameters: dict[str, Any], name: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise Rejected(f"parameter {name} must be true or false")
    return value


def _whole(parameters: dict[str, Any], name: str, greatest: int) -> int:
    """Return a parameter that is a whole number; 0, which stands for the default, when it is absent."""
    value = parameters.get(name, 0)
    if type(value) is not int or not 0 <= value <= greatest:
        raise Rejected(f"parameter {name} must be a whole number from 0 to {greatest}")
    return value


def _region(kind: str, tensor: str, parameters: dict[str, Any], *, offered: bool) -> RegionSlice | None:
    """Return the slice of a region that a tensor's parameters name, or None when they name none."""
    name = parameters.get("shared_memory_region")
    if name is None:
        return None
    owner = f"{kind} {tensor!r}"
    if not offered:
        raise Rejected(f"{owner}: shared memory is not offered here: send tensors in the body, or set shared_memory")
    size, offset = parameters.get("shared_memory_byte_size"), parameters.get("shared_memory_offset", 0)
    numbers = all(type(value) is int and value >= 0 for value in (size, offset))
    if not isinstance(name, str) or not numbers:
        raise Rejected(
            f"{owner}: shared_memory_region must be a name, shared_memory_byte_size and shared_memory_offset bytes"
        )
    return RegionSlice(name, int(offset), int(size or 0))


def _classes(output: str, parameters: dict[str, Any]) -> int:
    count = parameters.get("classification", 0)
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= MAX_CLASSES:
        raise Rejected(f"output {output!r}: classification must be a number of classes up to {MAX_CLASSES}")
    return count


def render_infer(
    model: str,
    version: int,
    request_id: str | None,
    outputs: Sequence[tuple[NamedTensor, WantedOutput]],
    shared: SharedMemory | None = None,
) -> tuple[bytes, int | None]:
    """Return the body of an answer, and the length of its JSON part when binary tensors follow (else None).

    Args:
        outputs: each tensor, and how it is wanted.
        shared: the registered regions.

    Raises:
        Rejected: when JSON cannot carry an output, or a region cannot take it.
    """
    entries: list[str] = []
    tail: list[bytes] = []
    for tensor, wish in outputs:
        datatype, shape = tensor.datatype or datatype_of(tensor.array.dtype), tensor.array.shape
        if wish.region is not None and shared is not None:
            entries.append(_entry(tensor.name, datatype, shape, parameters=_share(tensor, wish.region, shared)))
        elif wish.binary:
            tail.append(encode_binary(tensor.array))
            entries.append(_binary_entry(tensor.name, datatype, shape, len(tail[-1])))
        else:
            entries.append(_entry(tensor.name, datatype, shape, data=encode_json(tensor.array)))
    opening = _opening(model, version)
    closing = "]}" if request_id is None else f'],"id":{json.dumps(request_id)}}}'
    header = f"{opening}{','.join(entries)}{closing}".encode()
    if not tail:
        return header, None
    return b"".join((header, *tail)), len(header)


def _entry(name: str, datatype: str, shape: tuple[int, ...], **rest: object) -> str:
    document = {"name": name, "datatype": datatype, "shape": shape, **rest}
    return json.dumps(document, separators=(",", ":"), allow_nan=False)


# The JSON of an answer with binary tensors is the same each time, but for its id.


@lru_cache(maxsize=256)
def _binary_entry(name: str, datatype: str, shape: tuple[int, ...], size: int) -> str:
    return _entry(name, datatype, shape, parameters={"binary_data_size": size})


@lru_cache(maxsize=16)
def _opening(model: str, version: int) -> str:
    document = {"model_name": model, "model_version": str(version)}
    return json.dumps(document, separators=(",", ":"))[:-1] + ',"outputs":['


def _share(tensor: NamedTensor, region: RegionSlice, shared: SharedMemory) -> dict[str, Any]:
    """Put an output into its region, and return the parameters that say where it is."""
    data = encode_binary(tensor.array)
    try:
        shared.write(region.name, region.offset, region.size, data)
    except Rejected as err:
        raise Rejected(f"output {tensor.name!r}: {err}") from err
    where: dict[str, Any] = {"shared_memory_region": region.name, "shared_memory_byte_size": len(data)}
    return {**where, "shared_memory_offset": region.offset} if region.offset else where
