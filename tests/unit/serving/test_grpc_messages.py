"""The messages of gRPC: compiled from the .proto that is here, and the same on the wire as those of Triton's client."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("google.protobuf", reason="the extra grpc is not installed")

from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto, FileDescriptorSet

from regatta_agent.serving.grpc import open_inference_pb2

FOLDER = Path(open_inference_pb2.__file__).parent
OF_KSERVE_ALONE = "modelmetadataresponse.properties"  # Triton's messages do not have it


def test_descriptor_and_stub_are_what_the_proto_gives(tmp_path: Path) -> None:
    """The command in open_inference_pb2's docstring changes nothing, but for what another protoc writes otherwise."""
    protoc: Any = pytest.importorskip("grpc_tools.protoc", reason="grpcio-tools of the dev extra is not installed")
    made = ["", f"-I{FOLDER}", f"--descriptor_set_out={tmp_path}/made.binpb", f"--pyi_out={tmp_path}"]

    assert protoc.main([*made, "open_inference.proto"]) == 0

    assert _file(tmp_path / "made.binpb") == _file(FOLDER / "open_inference.binpb")
    assert _names(tmp_path / "open_inference_pb2.pyi") == _names(FOLDER / "open_inference_pb2.pyi")


def test_messages_are_those_of_triton_s_client() -> None:
    """Each field and method has the number, type and shape that the client's own descriptor has."""
    service_pb2: Any = pytest.importorskip(
        "tritonclient.grpc.service_pb2", reason="tritonclient[grpc] of the dev extra is not installed"
    )
    theirs = FileDescriptorProto.FromString(service_pb2.DESCRIPTOR.serialized_pb)
    ours = _file(FOLDER / "open_inference.binpb")

    known = dict(_fields(theirs))
    mine = {name: wire for name, wire in _fields(ours) if not name.lower().startswith(OF_KSERVE_ALONE)}
    assert {name: known.get(name) for name in mine} == mine
    methods = {method.name: method for method in theirs.service[0].method}
    assert theirs.service[0].name == ours.service[0].name
    assert len(ours.service[0].method) >= 11
    for method in ours.service[0].method:
        other = methods[method.name]
        assert (method.input_type, method.output_type) == (other.input_type, other.output_type)
        assert (method.client_streaming, method.server_streaming) == (other.client_streaming, other.server_streaming)


def _file(path: Path) -> FileDescriptorProto:
    file: FileDescriptorProto = FileDescriptorSet.FromString(path.read_bytes()).file[0]
    return file


def _names(stub: Path) -> list[str]:
    """Return the lines that say which messages and fields there are."""
    return re.findall(r"^ *(?:class \w+|__slots__ = .*)", stub.read_text(), re.MULTILINE)


def _fields(file: FileDescriptorProto) -> Iterator[tuple[str, tuple[int, int, int, str]]]:
    """Return what of each field is on the wire, by its name with those of its messages."""

    def of(message: DescriptorProto, name: str) -> Iterator[tuple[str, tuple[int, int, int, str]]]:
        for field in message.field:
            yield f"{name}.{field.name}", (field.number, field.type, field.label, field.type_name)
        for nested in message.nested_type:
            yield from of(nested, f"{name}.{nested.name}")

    for message in file.message_type:
        yield from of(message, message.name)
