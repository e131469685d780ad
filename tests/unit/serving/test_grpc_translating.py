"""Infer messages of gRPC become infer requests over HTTP, and answers over HTTP become messages."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("google.protobuf", reason="the extra grpc is not installed")

from regatta_agent.serving.exchange import Request, Response
from regatta_agent.serving.grpc.open_inference_pb2 import ModelInferRequest
from regatta_agent.serving.grpc.translating import HEADER_LENGTH, message_of_answer, model_path, request_of_message
from regatta_agent.serving.inference import InferRequest, NamedTensor, WantedOutput, parse_infer, render_infer
from regatta_agent.serving.tensors import Array, encode_binary
from regatta_protocol.errors import Rejected

TYPED: dict[str, tuple[str, st.SearchStrategy[Any]]] = {
    "BOOL": ("bool_contents", st.booleans()),
    **{f"INT{bits}": ("int_contents", st.integers(-(1 << bits - 1), (1 << bits - 1) - 1)) for bits in (8, 16, 32)},
    "INT64": ("int64_contents", st.integers(-(1 << 63), (1 << 63) - 1)),
    **{f"UINT{bits}": ("uint_contents", st.integers(0, (1 << bits) - 1)) for bits in (8, 16, 32)},
    "UINT64": ("uint64_contents", st.integers(0, (1 << 64) - 1)),
    "FP32": ("fp32_contents", st.floats(width=32, allow_nan=False, allow_infinity=False)),
    "FP64": ("fp64_contents", st.floats(allow_nan=False, allow_infinity=False)),
    "BYTES": ("bytes_contents", st.binary(max_size=8)),
}


def _parsed(request: Request) -> InferRequest:
    return parse_infer(request.body, request.headers[HEADER_LENGTH])


def _message(**more: Any) -> ModelInferRequest:
    tensor = {"name": "x", "datatype": "FP32", "shape": [2]}
    return ModelInferRequest(**{"model_name": "m", "inputs": [tensor], **more})


def _elements(datatype: str) -> st.SearchStrategy[tuple[str, list[Any]]]:
    return st.tuples(st.just(datatype), st.lists(TYPED[datatype][1], max_size=6))


@given(st.sampled_from(sorted(TYPED)).flatmap(_elements))
def test_typed_contents_are_the_tensor_that_raw_ones_are(drawn: tuple[str, list[Any]]) -> None:
    """Of every datatype that has a type; and its answer in that type has the same elements."""
    datatype, elements = drawn
    entry = {"name": "x", "datatype": datatype, "shape": [len(elements)], "contents": {TYPED[datatype][0]: elements}}
    typed = _parsed(request_of_message(_message(inputs=[entry]), local=True)).inputs[0]
    raw = _message(inputs=[{**entry, "contents": None}], raw_input_contents=[encode_binary(typed.array)])

    again = _parsed(request_of_message(raw, local=True)).inputs[0]
    answer = message_of_answer(_answer(NamedTensor("y", datatype, typed.array)), typed=True)

    assert again.array.tolist() == typed.array.tolist() == elements
    assert list(getattr(answer.outputs[0].contents, TYPED[datatype][0])) == elements
    assert not answer.raw_output_contents


def _answer(*tensors: NamedTensor) -> Response:
    body, length = render_infer("m", 3, "r", [(tensor, WantedOutput(tensor.name, True)) for tensor in tensors])
    return Response(200, body, headers=((HEADER_LENGTH, b"%d" % (length or len(body))),))


def test_all_of_a_message_is_in_the_request() -> None:
    """Path, id, parameters of every kind, wishes for outputs; what binary form needs is not the sender's to say."""
    message = _message(
        id="r-7",
        model_version="3",
        outputs=[{"name": "y"}],
        raw_input_contents=[np.array([1, 2], np.float32).tobytes()],
    )
    message.parameters["priority"].uint64_param = 2
    message.parameters["timeout"].int64_param = 500
    message.parameters["processed"].bool_param = True
    message.parameters["trace"].string_param = "x"
    message.parameters["share"].double_param = 0.5
    message.parameters["nothing"].SetInParent()
    message.parameters["binary_data_output"].bool_param = False
    message.outputs[0].parameters["classification"].int64_param = 3
    message.outputs[0].parameters["binary_data"].bool_param = False

    request = request_of_message(message, local=False)

    parsed = _parsed(request)
    assert (request.path, request.local) == ("/v2/models/m/versions/3/infer", False)
    assert (parsed.id, parsed.priority, parsed.timeout_us, parsed.processed) == ("r-7", 2, 500, True)
    assert parsed.outputs == (WantedOutput("y", True, 3),)
    assert model_path("a/b", "") == "/v2/models/a%2Fb"
    assert len(model_path("a" * 9999, "1" * 9999)) < 600, "which is remembered"


def _input(datatype: str, shape: int = 1, **contents: list[Any]) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "datatype": datatype, "shape": [shape], "contents": contents or None}]}


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"raw_input_contents": [b"12345678", b"1"]}, "2 raw_input_contents came for 1 inputs"),
        ({**_input("FP32", fp32_contents=[1]), "raw_input_contents": [b"1234"]}, "both given"),
        ({}, "needs 2 elements and 0 came"),
        (_input("FP32", int_contents=[1]), "in contents.fp32_contents, and int_contents came"),
        (_input("INT8", int_contents=[128]), "-128, 127"),
        (_input("FP16"), "in raw_input_contents"),
        (_input("FP32", shape=-1), "not valid"),
        (_input("BYTES", shape=70_000, bytes_contents=[b""] * 70_000), "70000 elements came"),
        ({"inputs": [{"name": "x", "shape": [1] * 17}]}, "shape of 17 sizes"),
        ({"inputs": [{"name": "x"}] * 257}, "257 inputs came"),
        ({"outputs": [{"name": "x"}] * 257}, "257 outputs came"),
    ],
)
def test_what_http_has_no_words_for_is_refused(more: dict[str, Any], says: str) -> None:
    """Contents that are mixed, too many, too few, or of another type say so."""
    with pytest.raises(Rejected, match=says):
        request_of_message(_message(**more), local=True)


@pytest.mark.parametrize("typed", [False, True])
def test_an_answer_speaks_as_its_request_did_but_for_fp16(typed: bool) -> None:
    """FP16 has no type, and so the whole answer is raw, as contents are never mixed."""
    half: Array = np.array([[0.5, 2]], np.float16)

    answer = message_of_answer(
        _answer(NamedTensor("h", "FP16", half), NamedTensor("i", "INT8", half.astype("i1"))), typed=typed
    )

    assert (answer.model_name, answer.model_version, answer.id) == ("m", "3", "r")
    assert [(out.name, out.datatype, list(out.shape)) for out in answer.outputs] == [
        ("h", "FP16", [1, 2]),
        ("i", "INT8", [1, 2]),
    ]
    assert list(answer.raw_output_contents) == [half.tobytes(), b"\0\2"]


def test_an_output_in_shared_memory_has_empty_contents_and_its_region() -> None:
    """Clients find an output's contents by its place, so each has an entry."""
    where = {"shared_memory_region": "r", "shared_memory_byte_size": 8, "shared_memory_offset": 4}
    outputs = [
        {"name": "a", "datatype": "FP32", "shape": [2], "parameters": where},
        {"name": "b", "datatype": "INT8", "shape": [1], "parameters": {"binary_data_size": 1}},
    ]
    header = json.dumps({"model_name": "m", "model_version": "1", "outputs": outputs}).encode()

    answer = message_of_answer(
        Response(200, header + b"\7", headers=((HEADER_LENGTH, b"%d" % len(header)),)), typed=False
    )

    assert list(answer.raw_output_contents) == [b"", b"\7"]
    assert answer.outputs[0].parameters["shared_memory_region"].string_param == "r"
    assert answer.outputs[0].parameters["shared_memory_offset"].int64_param == 4
