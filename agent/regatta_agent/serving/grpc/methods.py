"""The methods of `inference.GRPCInferenceService` but for inferring: each is a request over HTTP, and its answer. Pure.

What HTTP answers with status 200 is the method's message. Any other status is an error, but for liveness and readiness,
where it means no.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message

from regatta_agent.serving.exchange import Request, Response
from regatta_agent.serving.grpc import open_inference_pb2 as pb
from regatta_agent.serving.grpc.translating import model_path

__all__ = ["METHODS", "Method"]

M = TypeVar("M", bound=Message)
_REGIONS = "/v2/systemsharedmemory"


class Method(NamedTuple):
    """A method: the request that its message makes, and the message that an answer makes."""

    asked: Callable[[bytes, str], Request]  # of the message's bytes, and the name of the model served
    answered: Callable[[Response], Message]
    may_say_no: bool = False  # a status other than 200 is an answer


def _get(path: str) -> Request:
    return Request(b"GET", path, {}, b"")


def _region(name: str, action: str) -> str:
    one = f"/region/{quote(name, safe='')}" if name else ""
    return f"{_REGIONS}{one}{action}"


def _server_live(_data: bytes, _model: str) -> Request:
    return _get("/v2/health/live")


def _server_ready(_data: bytes, _model: str) -> Request:
    return _get("/v2/health/ready")


def _server_metadata(_data: bytes, _model: str) -> Request:
    return _get("/v2")


def _model_ready(data: bytes, _model: str) -> Request:
    message = pb.ModelReadyRequest.FromString(data)
    return _get(model_path(message.name, message.version, "/ready"))


def _model_metadata(data: bytes, _model: str) -> Request:
    message = pb.ModelMetadataRequest.FromString(data)
    return _get(model_path(message.name, message.version))


def _model_statistics(data: bytes, model: str) -> Request:
    message = pb.ModelStatisticsRequest.FromString(data)
    return _get(model_path(message.name or model, message.version, "/stats"))


def _region_status(data: bytes, _model: str) -> Request:
    return _get(_region(pb.SystemSharedMemoryStatusRequest.FromString(data).name, "/status"))


def _region_register(data: bytes, _model: str) -> Request:
    message = pb.SystemSharedMemoryRegisterRequest.FromString(data)
    body = {"key": message.key, "offset": message.offset, "byte_size": message.byte_size}
    return Request(b"POST", _region(message.name, "/register"), {}, json.dumps(body).encode())


def _region_unregister(data: bytes, _model: str) -> Request:
    name = pb.SystemSharedMemoryUnregisterRequest.FromString(data).name
    return Request(b"POST", _region(name, "/unregister"), {}, b"")


def _filled(message: M, document: dict[str, Any]) -> M:
    """Return the message with what the document has of its fields; the rest is for HTTP alone."""
    ParseDict(document, message, ignore_unknown_fields=True)
    return message


def _describe_model(response: Response) -> Message:
    document = json.loads(response.body)
    shared: dict[str, object] = document.pop("parameters")
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in shared.items()}
    return _filled(pb.ModelMetadataResponse(properties=texts), document)


def _count(response: Response) -> Message:
    document = json.loads(response.body)
    for batch in (batch for model in document["model_stats"] for batch in model["batch_stats"]):
        batch["compute_infer"] = {"count": batch["execution_count"]}
    return _filled(pb.ModelStatisticsResponse(), document)


def _list_regions(response: Response) -> Message:
    regions = {region["name"]: region for region in json.loads(response.body)}
    return _filled(pb.SystemSharedMemoryStatusResponse(), {"regions": regions})


METHODS = {
    "ServerLive": Method(_server_live, lambda r: pb.ServerLiveResponse(live=r.status == 200), may_say_no=True),
    "ServerReady": Method(_server_ready, lambda r: pb.ServerReadyResponse(ready=r.status == 200), may_say_no=True),
    "ModelReady": Method(_model_ready, lambda r: pb.ModelReadyResponse(ready=r.status == 200), may_say_no=True),
    "ServerMetadata": Method(_server_metadata, lambda r: _filled(pb.ServerMetadataResponse(), json.loads(r.body))),
    "ModelMetadata": Method(_model_metadata, _describe_model),
    "ModelStatistics": Method(_model_statistics, _count),
    "SystemSharedMemoryStatus": Method(_region_status, _list_regions),
    "SystemSharedMemoryRegister": Method(_region_register, lambda _: pb.SystemSharedMemoryRegisterResponse()),
    "SystemSharedMemoryUnregister": Method(_region_unregister, lambda _: pb.SystemSharedMemoryUnregisterResponse()),
}
