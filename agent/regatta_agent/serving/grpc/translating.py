"""Infer messages of gRPC as infer requests over HTTP, and the answers back. Pure, numpy and protobuf only.

A message becomes a request in the protocol's binary form (inference.py), with each tensor's bytes after the JSON that
describes it. So it goes the way of every other request: one reader, one set of checks with one text for each error, one
queue, one set of figures, and the same shadow. What is checked here is only what HTTP has no words for.

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

from regatta_agent.serving.grpc.open_inference_pb2 import (
    InferParameter,
    InferTensorContents,
    ModelInferRequest,
    ModelInferResponse,
)
from regatta_agent.serving.http import Request, Response
from regatta_agent.serving.tensors import decode_binary, decode_json, encode_binary
from regatta_protocol.errors import Rejected

__all__ = ["is_typed", "message_of_answer", "model_path", "request_of_message"]

HEADER_LENGTH = b"inference-header-content-length"
_REGION = "shared_memory_region"
_FIELDS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


@lru_cache(maxsize=64)  # a client asks for the same again and again
def model_path(name: str, version: str, action: str = "") -> str:
    """Return the path of what is asked of a model; an empty version is the one that serves."""
    versions = f"/versions/{quote(version, safe='')}" if version else ""
    return f"/v2/models/{quote(name, safe='')}{versions}{action}"


def is_typed(message: ModelInferRequest) -> bool:
    """Return whether the message gives elements one by one, which take long to read when there are many."""
    return any(tensor.HasField("contents") for tensor in message.inputs)


def request_of_message(message: ModelInferRequest, *, local: bool) -> Request:
    """Return the infer request that the message is.

    Args:
        message: an infer message; not yet held against a model.
        local: its sender is on this machine.

    Raises:
        Rejected: when raw and typed contents are mixed, or do not belong to the inputs.
    """
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
    field = _FIELDS.get(tensor.datatype)
    given = [descriptor.name for descriptor, _ in tensor.contents.ListFields()]
    if field is None or any(name != field for name in given):
        where = f"in contents.{field}" if field is not None else "in raw_input_contents"
        came = ", ".join(given) if given else "no contents"
        raise Rejected(f"input {tensor.name[:120]!r}: {tensor.datatype[:40]} comes {where}, and {came} came")
    elements = list(getattr(tensor.contents, field))
    if field == "bytes_contents":
        return encode_binary(np.array(elements, dtype=object))
    try:
        return encode_binary(decode_json(tensor.datatype, list(tensor.shape), elements))
    except Rejected as err:
        raise Rejected(f"input {tensor.name[:120]!r}: {err}") from err


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
    getattr(contents, _FIELDS[datatype]).extend(decode_binary(datatype, shape, part).ravel().tolist())
