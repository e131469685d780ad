"""The JSON part of an infer request, checked field by field: by hand, for what plain.py makes of annotations takes
several times as long, and with each request. Fields that the protocol does not have are passed over.

jiter, the parser inside pydantic, reads numbers six times as fast as the standard library. It refuses deep nesting
and halves of surrogate pairs, and takes 0.03 MB; its cache of strings would take more, and saves no time here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jiter

from regatta_protocol.errors import Rejected

__all__ = ["MAX_TENSORS", "Header", "InputEntry", "OutputEntry", "read_header"]

MAX_TENSORS = 256  # TFLite models with more inputs or outputs are not known to us
_MAX_ID, _MAX_NAME, _MAX_DATATYPE = 256, 512, 32
_MAX_SIZES = 32
_MAX_PARAMETERS = 64


class InputEntry(NamedTuple):
    """An input; `data` is its JSON array, None when its elements come otherwise."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any]
    data: list[Any] | None


class OutputEntry(NamedTuple):
    """An output that is asked for."""

    name: str
    parameters: dict[str, Any]


class Header(NamedTuple):
    """The whole part."""

    id: str | None
    parameters: dict[str, Any]
    inputs: list[InputEntry]
    outputs: list[OutputEntry]


def read_header(text: bytes) -> Header:
    """Return what the JSON says.

    Raises:
        Rejected: when it is no infer request; the text names the first wrong field.
    """
    try:
        document = jiter.from_json(text, cache_mode="none")
    except ValueError as err:
        raise Rejected(f"this is no JSON: {err}") from err
    if type(document) is not dict:
        raise _wrong("the whole", "should be an object")
    request_id = document.get("id")
    inputs, outputs = _array(document.get("inputs"), "inputs"), _array(document.get("outputs", []), "outputs")
    if not inputs:
        raise _wrong("inputs", "should have at least one")
    return Header(
        None if request_id is None else _text(request_id, _MAX_ID, "id"),
        _parameters(document, ""),
        [_input(entry, f"inputs.{place}.") for place, entry in enumerate(inputs)],
        [_output(entry, f"outputs.{place}.") for place, entry in enumerate(outputs)],
    )


def _wrong(where: str, text: str) -> Rejected:
    return Rejected(f"this is no infer request: {where}: {text}")


def _text(value: object, most: int, where: str) -> str:
    if type(value) is not str:
        raise _wrong(where, "should be text")
    if len(value) > most:
        raise _wrong(where, f"should have at most {most} characters, and has {len(value)}")
    return value


def _array(value: object, where: str) -> list[Any]:
    if type(value) is not list:
        raise _wrong(where, "should be an array")
    if len(value) > MAX_TENSORS:
        raise _wrong(where, f"should have at most {MAX_TENSORS}, and has {len(value)}")
    return value


def _parameters(entry: dict[str, Any], where: str) -> dict[str, Any]:
    parameters = entry.get("parameters")
    if parameters is None and "parameters" not in entry:
        return {}
    if type(parameters) is not dict or len(parameters) > _MAX_PARAMETERS:
        raise _wrong(f"{where}parameters", f"should be an object with at most {_MAX_PARAMETERS}")
    return parameters


def _input(entry: object, where: str) -> InputEntry:
    if type(entry) is not dict:
        raise _wrong(where[:-1], "should be an object")
    name = _text(entry.get("name"), _MAX_NAME, f"{where}name")
    datatype = _text(entry.get("datatype"), _MAX_DATATYPE, f"{where}datatype")
    shape, data = entry.get("shape"), entry.get("data")
    if type(shape) is not list or len(shape) > _MAX_SIZES or not all(type(size) is int for size in shape):
        raise _wrong(f"{where}shape", f"should be an array of at most {_MAX_SIZES} whole numbers")
    if data is not None and type(data) is not list:
        raise _wrong(f"{where}data", "should be an array")
    return InputEntry(name, shape, datatype, _parameters(entry, where), data)


def _output(entry: object, where: str) -> OutputEntry:
    if type(entry) is not dict:
        raise _wrong(where[:-1], "should be an object")
    return OutputEntry(_text(entry.get("name"), _MAX_NAME, f"{where}name"), _parameters(entry, where))
