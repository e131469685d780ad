"""An infer request is read or refused, in JSON and with the binary extension."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regatta_agent.serving.inference import NamedTensor, WantedOutput, parse_infer, render_infer
from regatta_protocol.errors import Rejected

ENTRY: dict[str, Any] = {"name": "x", "shape": [2], "datatype": "FP32"}


def _body(*inputs: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"inputs": list(inputs), **more}).encode()


def _binary(size: int) -> dict[str, Any]:
    return {**ENTRY, "parameters": {"binary_data_size": size}}


def test_json_and_binary_inputs_may_be_mixed() -> None:
    """Binary parts follow in the order of the inputs that announce them."""
    header = _body(_binary(8), {**ENTRY, "name": "y", "data": [3, 4]}, {**_binary(8), "name": "z"}, id="7")
    tail = np.array([1, 2, 5, 6], dtype="<f4").tobytes()

    request = parse_infer(header + tail, str(len(header)).encode())

    assert request.id == "7"
    assert [tensor.array.tolist() for tensor in request.inputs] == [[1, 2], [3, 4], [5, 6]]


def test_outputs_inherit_the_request_s_wish_for_binary() -> None:
    """binary_data_output sets the default, binary_data an output's own."""
    outputs = [{"name": "a"}, {"name": "b", "parameters": {"binary_data": False, "classification": 3}}]

    request = parse_infer(
        _body({**ENTRY, "data": [1, 2]}, outputs=outputs, parameters={"binary_data_output": True}), None
    )

    assert [(output.binary, output.classes) for output in request.outputs] == [(True, 0), (False, 3)]


@pytest.mark.parametrize(
    ("body", "length", "says"),
    [
        (b"", None, "no JSON"),
        (b"{", None, "JSON"),
        (b"[" * 100_000, None, "JSON"),
        (b"{}", None, "inputs"),
        (_body(), None, "inputs"),
        (b" " * (8 << 20) + b"{}", None, "over the limit of 8388608: send tensors as binary data"),
        (_body(ENTRY), None, "no data"),
        (_body({**ENTRY, "data": [1, 2], "parameters": {"binary_data_size": 8}}), b"9", "not valid|no JSON"),
        (_body(_binary(8)), None, "header Inference-Header-Content-Length is missing"),
        (_body(_binary(8)), str(len(_body(_binary(8)))).encode(), "cut off"),
        (_body(_binary(4)) + b"1234", str(len(_body(_binary(4)))).encode(), "needs 8 bytes"),
        (_body(_binary(8)) + b"123456789", str(len(_body(_binary(8)))).encode(), "follow the last input"),
        (_body(_binary(-1)), str(len(_body(_binary(-1)))).encode(), "number of bytes"),
        (_body({**ENTRY, "data": [1, 2]}), b"99999", "not valid"),
        (_body({**ENTRY, "data": [1, 2]}), b"-1", "not valid"),
        (_body({**ENTRY, "datatype": "FLOAT", "data": [1, 2]}), None, "not known"),
        (_body({**ENTRY, "shape": [3], "data": [1, 2]}), None, "needs 3 elements"),
        (_body({**ENTRY, "shape": [-2], "data": [1, 2]}), None, "not valid"),
        (_body({**ENTRY, "data": [1, 2], "parameters": {"shared_memory_region": "r"}}), None, "shared memory"),
        (_body({**ENTRY, "data": [1, 2]}, parameters={"binary_data_output": "yes"}), None, "true or false"),
        (
            _body({**ENTRY, "data": [1, 2]}, outputs=[{"name": "a", "parameters": {"classification": -1}}]),
            None,
            "class",
        ),
    ],
)
def test_bad_requests_say_what_is_wrong(body: bytes, length: bytes | None, says: str) -> None:
    """Each kind of damage has its own words."""
    with pytest.raises(Rejected, match=says):
        parse_infer(body, length)


@given(st.binary(max_size=300), st.none() | st.integers(0, 400).map(lambda n: str(n).encode()))
def test_any_body_is_read_or_refused(body: bytes, length: bytes | None) -> None:
    """No body crashes the parser."""
    with contextlib.suppress(Rejected):
        parse_infer(body, length)


@given(st.data())
def test_a_damaged_good_request_is_read_or_refused(data: st.DataObject) -> None:
    """Cutting or changing one byte of a good request never crashes the parser."""
    header = _body(_binary(8), id="7")
    body = bytearray(header + b"12345678")
    body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(body)))

    with contextlib.suppress(Rejected):
        parse_infer(bytes(body[:cut]), str(len(header)).encode())


def test_an_answer_carries_json_and_binary_tensors() -> None:
    """The header's length tells where the binary part begins; the id is echoed."""
    scores = NamedTensor("s", "FP32", np.array([[0.5, 0.25]], dtype=np.float32))
    codes = NamedTensor("c", "INT8", np.array([1, -1], dtype=np.int8))

    body, length = render_infer("m", 3, "r1", [(scores, WantedOutput("s", False)), (codes, WantedOutput("c", True))])

    document = json.loads(body[:length])
    assert (document["id"], document["model_name"], document["model_version"]) == ("r1", "m", "3")
    assert document["outputs"][0] == {"name": "s", "datatype": "FP32", "shape": [1, 2], "data": [0.5, 0.25]}
    assert document["outputs"][1]["parameters"] == {"binary_data_size": 2}
    assert body[length:] == b"\x01\xff"


def test_an_answer_in_json_has_no_header_length() -> None:
    """Without binary tensors the whole body is JSON."""
    codes = NamedTensor("c", "INT8", np.array([1], dtype=np.int8))

    body, length = render_infer("m", 3, None, [(codes, WantedOutput("c", False))])

    assert length is None
    assert "id" not in json.loads(body)
