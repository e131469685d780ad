"""What a client says and is told: arrays to the parts of a request, an answer to arrays, statuses to errors. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from regatta_agent.serving.caller import Answer
from regatta_agent.serving.tensors import Array, datatype_of, decode_binary, decode_json, encode_binary
from regatta_protocol.errors import Rejected, Retryable, TooLarge

__all__ = [
    "Arrays",
    "Described",
    "Item",
    "Part",
    "Processed",
    "Score",
    "ServerBusy",
    "checked",
    "encode_inputs",
    "encode_item",
    "header_of",
    "is_sent_whole",
    "json_of",
    "parse_score",
    "processed_of",
    "tensors_of",
]

Arrays = Array | Sequence[Array] | Mapping[str, Array]
Item = bytes | Array  # a file's content, a picture's pixels (uint8 [h, w, c]) or a sound (int16 or float32 [n])
Part = bytes | memoryview
_RESULT = "result"
_KEPT_BYTES = 4096  # of an answer's JSON part


class Described(NamedTuple):
    """An input as a request's JSON part has it."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: tuple[tuple[str, int | str], ...]


class ServerBusy(Retryable):
    """The worker's queue is full (429), or it is still loading (503). `after_s` is what it asked to wait."""

    def __init__(self, message: str, after_s: float) -> None:
        super().__init__(message)
        self.after_s = after_s


@dataclass(frozen=True)
class Score:
    """One class of a classification: its index, the model's score for it, and its label (the index when unnamed)."""

    index: int
    score: float
    label: str


@dataclass(frozen=True)
class Processed:
    """The answer to a picture or a sound: a document by its kind (docs/processing.md), and perhaps a `mask`."""

    document: dict[str, Any]
    arrays: dict[str, Array] = field(default_factory=dict)


def checked(answer: Answer) -> Answer:
    """Return the answer when it is a success, else raise what its status means."""
    if answer.status == 200:
        return answer
    try:
        text = str(json_of(answer)["error"])
    except (Rejected, KeyError):
        text = f"the worker answered with status {answer.status}"
    if answer.status in (429, 503):
        after = answer.headers.get(b"retry-after", b"1")
        raise ServerBusy(text, float(after) if after.isdigit() else 1.0)
    if answer.status == 413:
        raise TooLarge(text)
    if answer.status >= 500:
        raise Retryable(text)
    raise Rejected(text)


def encode_inputs(wanted: Sequence[Mapping[str, Any]], arrays: Arrays) -> tuple[tuple[Described, ...], list[Part]]:
    """Return the descriptions of a request's inputs, and their binary parts.

    Raises:
        Rejected: when there are more or fewer arrays than inputs.
    """
    shapes = {str(entry["name"]): entry["shape"] for entry in wanted}
    named: Mapping[str, Array]
    if isinstance(arrays, Mapping):
        named = arrays
    else:
        given = [arrays] if isinstance(arrays, np.ndarray) else list(arrays)
        if len(given) != len(shapes):
            raise Rejected(f"{len(given)} arrays were given and the model takes {len(shapes)}: {', '.join(shapes)}")
        named = dict(zip(shapes, given, strict=True))
    described, tail = [], []
    for name, given_array in named.items():
        array, shape = given_array, shapes.get(name, ())
        if array.ndim + 1 == len(shape) and shape[0] in (1, -1):
            array = array[np.newaxis]
        if array.dtype.kind == "f" and array.dtype != np.float32:
            array = array.astype(np.float32)
        entry, data = _encode(name, array)
        described.append(entry)
        tail.append(data)
    return tuple(described), tail


def encode_item(item: Item) -> tuple[Described, Part]:
    """Return the one input of a processed request and its binary part."""
    if isinstance(item, np.ndarray):
        return _encode("item", item)
    file = np.empty(1, dtype=object)
    file[0] = bytes(item)
    return _encode("item", file)


@lru_cache(maxsize=64)  # a client asks for the same again and again
def header_of(wish: str, inputs: tuple[Described, ...]) -> bytes:
    """Return the JSON part of a request.

    Args:
        wish: what it asks for, the members of a JSON object but for the inputs.
        inputs: of the request.
    """
    entries = [{**one._asdict(), "parameters": dict(one.parameters)} for one in inputs]
    return f'{{{wish},"inputs":{json.dumps(entries, separators=(",", ":"))}}}'.encode()


def _encode(name: str, array: Array) -> tuple[Described, Part]:
    data = _bytes_of(array)
    return Described(name, datatype_of(array.dtype), array.shape, (("binary_data_size", len(data)),)), data


def _bytes_of(array: Array) -> Part:
    """Return the tensor's bytes, from where they lie when they lie as the protocol has them."""
    if array.dtype.kind not in "iufb" or array.dtype.byteorder == ">":
        return encode_binary(array)
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def is_sent_whole(item: Item, metadata: Mapping[str, Any]) -> bool:
    """Return whether the worker has to make the model's input of it: a file, or pixels or a sound of another shape."""
    if not isinstance(item, np.ndarray):
        return True
    kind = metadata.get("parameters", {}).get("processing", {}).get("input")
    entry = metadata["inputs"][0]
    if kind == "audio":
        return item.ndim == 1
    if kind != "image" or item.dtype != np.uint8 or item.ndim not in (2, 3):
        return False
    return entry["datatype"] != "UINT8" or list(item.shape) != list(entry["shape"])[1:]


def tensors_of(answer: Answer, shared: Callable[[Mapping[str, Any]], Array] | None = None) -> dict[str, Array]:
    """Return the outputs of an infer response, which lie in its body.

    Args:
        answer: the response.
        shared: reads an output that lies in shared memory.

    Raises:
        Rejected: when it is none.
    """
    document, rest = json_of(answer), answer.body[_header_length(answer) :]
    tensors: dict[str, Array] = {}
    try:
        for output in document["outputs"]:
            parameters = output.get("parameters", {})
            size = parameters.get("binary_data_size")
            if shared is not None and "shared_memory_region" in parameters:
                array = shared(output)
            elif size is None:
                array = decode_json(output["datatype"], output["shape"], output["data"])
            else:
                array, rest = decode_binary(output["datatype"], output["shape"], rest[:size]), rest[size:]
            tensors[output["name"]] = array
    except (KeyError, TypeError, AttributeError) as err:
        raise Rejected(f"the worker's answer is no infer response: {err}") from err
    return tensors


def processed_of(answer: Answer) -> Processed:
    """Return what a processed request was answered.

    Raises:
        Rejected: when it is no such answer.
    """
    arrays = tensors_of(answer)
    try:
        document = json.loads(bytes(arrays.pop(_RESULT)[0]))
    except (KeyError, ValueError, IndexError) as err:
        raise Rejected("the worker's answer has no result: is its agent older than processed requests?") from err
    return Processed(document, arrays)


def json_of(answer: Answer) -> dict[str, Any]:
    """Return the JSON part of an answer.

    Raises:
        Rejected: when there is no JSON object.
    """
    text = bytes(answer.body[: _header_length(answer)])
    return _parsed_again(text) if len(text) <= _KEPT_BYTES else _parsed(text)


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as err:
        raise Rejected("the worker's answer is no JSON") from err
    if not isinstance(document, dict):
        raise Rejected("the worker's answer is no JSON object")
    return document


# The JSON of an answer with binary tensors is the same each time, when the request has no id. Nobody here changes it.
_parsed_again = lru_cache(maxsize=32)(_parsed)


def _header_length(answer: Answer) -> int:
    """Return where the binary part begins; the body's length when there is none."""
    text = answer.headers.get(b"inference-header-content-length", b"")
    return int(text) if text.isdigit() else len(answer.body)


def parse_score(text: str) -> Score:
    """Return the class in `score:index[:label]` of the classification extension."""
    score, index, *label = text.split(":", 2)
    return Score(int(index), float(score), label[0] if label else index)
