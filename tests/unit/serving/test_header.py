"""The JSON part of an infer request: what is taken, what is passed over, and that the first wrong field is named."""

from __future__ import annotations

import json
from typing import Any

import pytest

from regatta_agent.serving.header import Header, InputEntry, OutputEntry, read_header
from regatta_protocol.errors import Rejected

_INPUT: dict[str, Any] = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2.5]}


def _read(**fields: object) -> Header:
    return read_header(json.dumps({"inputs": [_INPUT], **fields}).encode())


def test_all_that_the_protocol_has_is_read_and_the_rest_passed_over() -> None:
    """A newer client may say more."""
    given = {**_INPUT, "parameters": {"a": 1}, "unit": "m"}

    header = _read(id="é", inputs=[given], outputs=[{"name": "y"}], parameters={"priority": 1}, trace=True)

    assert header == Header(
        "é", {"priority": 1}, [InputEntry("x", [1, 2], "FP32", {"a": 1}, [1, 2.5])], [OutputEntry("y", {})]
    )
    assert _read(id=None) == Header(None, {}, [InputEntry("x", [1, 2], "FP32", {}, [1, 2.5])], [])


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"id": 7}, "id: should be text"),
        ({"id": "i" * 257}, "id: should have at most 256"),
        ({"parameters": None}, "parameters: should be an object"),
        ({"parameters": dict.fromkeys(map(str, range(65)), 1)}, "parameters: should be an object with at most 64"),
        ({"inputs": []}, "inputs: should have at least one"),
        ({"inputs": {"0": _INPUT}}, "inputs: should be an array"),
        ({"inputs": [_INPUT] * 257}, "inputs: should have at most 256"),
        ({"inputs": [_INPUT, 1]}, r"inputs\.1: should be an object"),
        ({"inputs": [{**_INPUT, "name": 1}]}, r"inputs\.0\.name: should be text"),
        ({"inputs": [{**_INPUT, "name": "n" * 513}]}, r"inputs\.0\.name: should have at most 512"),
        ({"inputs": [{**_INPUT, "datatype": None}]}, r"inputs\.0\.datatype: should be text"),
        ({"inputs": [{**_INPUT, "shape": [1, True]}]}, r"inputs\.0\.shape: should be an array"),
        ({"inputs": [{**_INPUT, "shape": [1] * 33}]}, r"inputs\.0\.shape: .* at most 32"),
        ({"inputs": [{**_INPUT, "data": {"0": 1}}]}, r"inputs\.0\.data: should be an array"),
        ({"inputs": [{**_INPUT, "parameters": []}]}, r"inputs\.0\.parameters: should be an object"),
        ({"outputs": None}, "outputs: should be an array"),
        ({"outputs": ["y"]}, r"outputs\.0: should be an object"),
        ({"outputs": [{"name": "y", "parameters": 1}]}, r"outputs\.0\.parameters"),
    ],
)
def test_the_first_wrong_field_is_named(fields: dict[str, object], says: str) -> None:
    with pytest.raises(Rejected, match=f"this is no infer request: {says}"):
        _read(**fields)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"\xff", b'{"inputs"', b'["\\ud800"]', b"[" * 100_000, '{"id": "x"}'.encode("utf-16")]
)
def test_what_is_no_json_is_refused(text: bytes) -> None:
    """Neither deep nesting nor half of a character gets any further."""
    with pytest.raises(Rejected, match="no JSON"):
        read_header(text)


def test_a_document_that_is_no_object_is_refused() -> None:
    with pytest.raises(Rejected, match="the whole: should be an object"):
        read_header(b"[]")
