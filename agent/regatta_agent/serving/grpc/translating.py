"""Infer messages of gRPC as infer requests over HTTP, and the answers back. Pure, numpy and protobuf only.

A message becomes a request in the protocol's binary form (inference.py), with each tensor's bytes after the JSON that
describes it. So it goes the way of every other request: one reader, one set of checks with one text for each error, one
queue, one set of figures, and the same shadow. What is checked here is only what HTTP has no words for, and how many
entries there are of each kind: a message has them in two bytes each, and Python in a hundred.

An answer speaks as its request did: raw contents to raw ones (and to a request whose inputs all are in shared memory),
typed contents to typed ones, but for FP16, which has no type in the protocol.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, cast
from urllib.parse import quote

import numpy as np

from regatta_agent.serving.exchange import Request, Response
from regatta_agent.serving.grpc.open_inference_pb2 import (
    InferParameter,
    InferTensorContents,
    ModelInferRequest,
    ModelInferResponse,
)
from regatta_agent.serving.header import MAX_TENSORS
from regatta_agent.serving.tensors import (
    DATATYPES,
    MAX_DIMENSIONS,
    Array,
    decode_binary,
    element_count,
    encode_binary,
)
from regatta_protocol.errors import Rejected

__all__ = ["is_typed", "message_of_answer", "model_path", "request_of_message"]

HEADER_LENGTH = b"inference-header-content-length"
_REGION = "shared_memory_region"
_LONGEST_NAME = 256  # characters; what follows is not asked for, as no model has such a name
_MOST_PARAMETERS = 64
_MOST_STRINGS = 65_536  # one by one: an empty one is two bytes of a message, and was measured at 250 of memory here
_FIELDS = {
    "BOOL": ("bool_contents", np.dtype("?")),
    "INT8": ("int_contents", np.dtype("i4")),
    "INT16": ("int_contents", np.dtype("i4")),
    "INT32": ("int_contents", np.dtype("i4")),
    "INT64": ("int64_contents", np.dtype("i8")),
    "UINT8": ("uint_contents", np.dtype("u4")),
    "UINT16": ("uint_contents", np.dtype("u4")),
    "UINT32": ("uint_contents", np.dtype("u4")),
    "UINT64": ("uint64_contents", np.dtype("u8")),
    "FP32": ("fp32_contents", np.dtype("f4")),
    "FP64": ("fp64_contents", np.dtype("f8")),
    "BYTES": ("bytes_contents", np.dtype(object)),
}


def model_path(name: str, version: str, action: str = "") -> str:
    """Return the path of what is asked of a model; an empty version is the one that serves."""
    return _path(name[:_LONGEST_NAME], version[:_LONGEST_NAME], action)


@lru_cache(maxsize=64)  # a client asks for the same again and again
def _path(name: str, version: str, action: str) -> str:
    versions = f"/versions/{quote(version, safe='')}" if version else ""
    return f"/v2/models/{quote(name, safe='')}{versions}{action}"


def is_typed(message: ModelInferRequest) -> bool:
    """Return whether the message gives elements one by one, which take long to read when there are many."""
    return any(tensor.HasField("contents") for tensor in message.inputs[:MAX_TENSORS])


def request_of_message(message: ModelInferRequest, *, local: bool) -> Request:
    """Return the infer request that the message is.

    Args:
        message: an infer message; not yet held against a model.
        local: its sender is on this machine.

    Raises:
        Rejected: when raw and typed contents are mixed, or do not belong to the inputs.
    """
    _check_counts(message)
    parts = _raw_parts(message) if message.raw_input_contents else _typed_parts(message)
    document: dict[str, Any] = {
        "inputs": [
            {
                "name": tensor.name,
                "datatype": tensor.datatype,
                "shape": list(tensor.shape),
                "parameters": _values(tensor.parameters) | ({} if part is None else {"binary_data_size": len(part)}),
            }
            for tensor, part in zip(message.inputs, parts, strict=True)
        ],
        "outputs": [
            {"name": output.name, "parameters": {**_values(output.parameters), "binary_data": True}}
            for output in message.outputs
        ],
        "parameters": {**_values(message.parameters), "binary_data_output": True},
    }
    if message.id:
        document["id"] = message.id
    header = json.dumps(document, separators=(",", ":")).encode()
    body = b"".join((header, *(part for part in parts if part is not None)))
    path = model_path(message.model_name, message.model_version, "/infer")
    return Request(b"POST", path, {HEADER_LENGTH: b"%d" % len(header)}, body, local)


def _check_counts(message: ModelInferRequest) -> None:
    """Refuse a message of more entries than HTTP takes, before each costs memory."""
    counts = [
        ("inputs", len(message.inputs), MAX_TENSORS),
        ("outputs", len(message.outputs), MAX_TENSORS),
        ("parameters", len(message.parameters), _MOST_PARAMETERS),
    ]
    for what, count, most in counts:
        if count > most:
            raise Rejected(f"{count} {what} came: up to {most} are taken")
    parameters = [(one.name, one.parameters) for one in message.inputs]
    parameters += [(one.name, one.parameters) for one in message.outputs]
    for name, given in parameters:
        if len(given) > _MOST_PARAMETERS:
            raise Rejected(f"{name[:120]!r} has {len(given)} parameters: up to {_MOST_PARAMETERS} are taken")
    for tensor in message.inputs:
        if len(tensor.shape) > MAX_DIMENSIONS:
            raise Rejected(
                f"{tensor.name[:120]!r} has a shape of {len(tensor.shape)} sizes: up to {MAX_DIMENSIONS} are taken"
            )


def _raw_parts(message: ModelInferRequest) -> list[bytes | None]:
    """Return the bytes of each input, None for one in shared memory."""
    if is_typed(message):
        raise Rejected("raw_input_contents and the contents of an input are both given: use one for all inputs")
    bodily = [_REGION not in tensor.parameters for tensor in message.inputs]
    if sum(bodily) != len(message.raw_input_contents):
        raise Rejected(
            f"{len(message.raw_input_contents)} raw_input_contents came for {sum(bodily)} inputs that are not in "
            "shared memory: give one for each"
        )
    contents = iter(message.raw_input_contents)
    return [next(contents) if has_bytes else None for has_bytes in bodily]


def _typed_parts(message: ModelInferRequest) -> list[bytes | None]:
    return [None if _REGION in tensor.parameters else _packed(tensor) for tensor in message.inputs]


def _packed(tensor: ModelInferRequest.InferInputTensor) -> bytes:
    """Return the bytes of typed contents, or why there are none."""
    field, dtype = _FIELDS.get(tensor.datatype, ("", DATATYPES["BYTES"]))
    given = [descriptor.name for descriptor, _ in tensor.contents.ListFields()]
    name = f"input {tensor.name[:120]!r}"
    if not field or any(other != field for other in given):
        where = f"in contents.{field}" if field else "in raw_input_contents"
        came = ", ".join(given) if given else "no contents"
        raise Rejected(f"{name}: {tensor.datatype[:40]} comes {where}, and {came} came")
    elements, shape = getattr(tensor.contents, field), list(tensor.shape)
    try:
        count = element_count(shape)
    except Rejected as err:
        raise Rejected(f"{name}: {err}") from err
    if len(elements) != count:
        raise Rejected(f"{name}: shape {shape} needs {count} elements and {len(elements)} came")
    if field == "bytes_contents" and count > _MOST_STRINGS:
        raise Rejected(f"{name}: {count} elements came: send more than {_MOST_STRINGS} of BYTES in raw_input_contents")
    array: Array = np.fromiter(elements, dtype, count)
    typed: Array = array.astype(DATATYPES[tensor.datatype], copy=False)
    if dtype.kind in "iu" and not np.array_equal(typed, array):
        limits = np.iinfo(typed.dtype)
        raise Rejected(f"{name}: {tensor.datatype} must lie in [{limits.min}, {limits.max}]")
    return encode_binary(typed)


def _values(parameters: Mapping[str, InferParameter]) -> dict[str, Any]:
    """Return parameters as JSON has them; None for one without a value."""
    values: dict[str, Any] = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        values[name] = None if choice is None else getattr(parameter, choice)
    return values


def message_of_answer(response: Response, *, typed: bool) -> ModelInferResponse:
    """Return the message of an answer with status 200.

    Args:
        response: what the worker answers over HTTP to such a request.
        typed: give elements one by one, where the protocol has a type for all of them.
    """
    length = int(dict(response.headers).get(HEADER_LENGTH, b"%d" % len(response.body)))
    document = json.loads(response.body[:length])
    answer = ModelInferResponse(
        model_name=document["model_name"], model_version=document["model_version"], id=document.get("id", "")
    )
    parts, begin = [], length
    for output in document["outputs"]:
        parameters = output.get("parameters", {})
        end = begin + parameters.pop("binary_data_size", 0)  # one in shared memory has none
        parts.append(response.body[begin:end])
        begin = end
        entry = answer.outputs.add(name=output["name"], datatype=output["datatype"], shape=output["shape"])
        for name, value in parameters.items():
            _set(entry.parameters[name], value)
    if typed and all(output.datatype in _FIELDS for output in answer.outputs):
        for entry, part in zip(answer.outputs, parts, strict=True):
            if _REGION not in entry.parameters:
                _fill(entry.contents, entry.datatype, list(entry.shape), part)
    else:
        answer.raw_output_contents.extend(parts)
    return answer


def _set(parameter: InferParameter, value: object) -> None:
    """Set a parameter of an answer: the name of a region, or a number of bytes."""
    if isinstance(value, str):
        parameter.string_param = value
    else:
        parameter.int64_param = cast(int, value)


def _fill(contents: InferTensorContents, datatype: str, shape: list[int], part: bytes) -> None:
    getattr(contents, _FIELDS[datatype][0]).extend(decode_binary(datatype, shape, part).ravel().tolist())
