"""What a worker answers: the routes of the Open Inference Protocol v2, feedback and metrics. Runs on the loop.

    GET  /v2                                       server metadata
    GET  /v2/health/live, /v2/health/ready
    GET  /v2/models/M[/versions/V]                 model metadata
    GET  /v2/models/M[/versions/V]/ready
    POST /v2/models/M[/versions/V]/infer
    POST /v2/models/M[/versions/V]/feedback        {"id": …, "label": name or index} or {"id": …, "correct": bool}
    GET  /metrics                                  OpenMetrics

An unready server or model answers 400, as the protocol's text asks ("a 4xx status code indicates false"). Errors are
`{"error": text}`. Model work is handed to the engine; nothing here blocks.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, Field

import regatta_protocol
from regatta_agent.serving.engine import Engine, Finished
from regatta_agent.serving.feedback import Feedback
from regatta_agent.serving.http import Request, Respond, Response, error_response, json_response
from regatta_agent.serving.inference import parse_infer, render_infer
from regatta_agent.serving.metrics import CONTENT_TYPE, openmetrics
from regatta_agent.serving.placed import PlacedModel
from regatta_agent.serving.window import Outcome, Tally, Timing
from regatta_protocol.codec import decode
from regatta_protocol.errors import Rejected

__all__ = ["Service"]

logger = logging.getLogger(__name__)

_HEADER_LENGTH = b"inference-header-content-length"
_EXTENSIONS = ["binary_tensor_data", "classification", "feedback", "processed", "stacked"]
_RETRY = ((b"retry-after", b"1"),)
_JSON, _BINARY = b"application/json", b"application/octet-stream"
_MAX_FEEDBACK_BYTES = 16_384
_BRIEF_BYTES = 65_536  # a longer body may take long to parse however brief the others were: 64 KiB of JSON take 1 ms


class _FeedbackBody(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    id: str = Field(min_length=1, max_length=256)
    label: int | str | None = None
    correct: bool | None = None


@dataclass(frozen=True)
class _Inferred:
    """What the engine's thread made of an infer request."""

    response: Response
    request_id: str | None
    predicted: int | None
    compute_ns: int


class Service:
    """The handler of every request. `placed` is None until the model is loaded and tested."""

    def __init__(self, engine: Engine, tally: Tally, feedback: Feedback, connections: Callable[[], int]) -> None:
        self._engine = engine
        self._tally = tally
        self._feedback = feedback
        self._connections = connections
        self._model = tally.placement.model
        self._version = tally.placement.version
        self._infer_paths = {self._path("infer", versioned=False), self._path("infer", versioned=True)}
        self.placed: PlacedModel | None = None
        self.draining = False
        self.degraded: str | None = None  # why another than the winner serves

    def _path(self, action: str, *, versioned: bool) -> str:
        return f"/v2/models/{self._model}{f'/versions/{self._version}' if versioned else ''}/{action}"

    def handle(self, request: Request, respond: Respond) -> None:
        """Answer `request`, now or later."""
        if request.method == b"POST" and request.path in self._infer_paths:
            self._start_infer(request, respond)
            return
        try:
            response = self._answer(request)
        except Rejected as err:
            response = error_response(400, str(err))
        respond(response)

    # everything but infer

    def _answer(self, request: Request) -> Response:
        parts = request.path.strip("/").split("/")
        if parts == ["metrics"]:
            return self._get(request, self._metrics)
        if parts[0] != "v2":
            return error_response(404, f"there is nothing at {request.path[:200]!r}: the protocol begins at /v2")
        if parts == ["v2"]:
            return self._get(request, self._server_metadata)
        if parts[1:] == ["health", "live"]:
            return self._get(request, lambda: json_response({"live": True}))
        if parts[1:] == ["health", "ready"]:
            return self._get(request, lambda: json_response({"ready": self._ready}, 200 if self._ready else 400))
        if parts[1] == "models" and len(parts) >= 3:
            return self._answer_model(request, parts[2], parts[3:])
        return error_response(404, f"there is nothing at {request.path[:200]!r}")

    def _answer_model(self, request: Request, model: str, rest: list[str]) -> Response:
        if model != self._model:
            return error_response(404, f"model {model[:80]!r} is not served here: this is {self._model!r}")
        if len(rest) >= 2 and rest[0] == "versions":
            if rest[1] != str(self._version):
                text = f"version {rest[1][:20]!r} of {self._model!r} is not served here: this is {self._version}"
                return error_response(404, text)
            rest = rest[2:]
        if not rest:
            return self._get(request, self._model_metadata)
        if rest == ["ready"]:
            document = {"name": self._model, "ready": self._ready}
            return self._get(request, lambda: json_response(document, 200 if self._ready else 400))
        if rest == ["feedback"]:
            return self._judge(request) if request.method == b"POST" else _not_allowed(b"POST")
        if rest == ["infer"]:
            return _not_allowed(b"POST")
        return error_response(404, f"there is nothing at {request.path[:200]!r}")

    def _get(self, request: Request, answer: Callable[[], Response]) -> Response:
        return answer() if request.method == b"GET" else _not_allowed(b"GET")

    @property
    def _ready(self) -> bool:
        return self.placed is not None and not self.draining

    def _server_metadata(self) -> Response:
        return json_response({"name": "regatta", "version": regatta_protocol.__version__, "extensions": _EXTENSIONS})

    def _model_metadata(self) -> Response:
        if self.placed is None:
            return _not_ready()
        parameters: dict[str, Any] = {"placement": self._tally.placement.candidate_id}
        parameters["processing"] = self.placed.processor.describe()
        if self.degraded is not None:
            parameters["degraded"] = self.degraded
        return json_response(self.placed.interface.metadata(self._model, self._version, parameters))

    def _metrics(self) -> Response:
        text = openmetrics(
            self._tally,
            pending=self._engine.pending,
            connections=self._connections(),
            degraded=self.degraded is not None,
        )
        return Response(200, text.encode(), CONTENT_TYPE.encode())

    def _judge(self, request: Request) -> Response:
        if b"origin" in request.headers:
            return _of_a_web_page()
        if self.placed is None:
            return _not_ready()
        body = decode(_FeedbackBody, request.body, _MAX_FEEDBACK_BYTES)
        if (body.label is None) == (body.correct is None):
            return error_response(400, "feedback has exactly one of label and correct")
        label = self.placed.interface.class_of(body.label) if isinstance(body.label, str) else body.label
        if body.label is not None and label is None:
            return error_response(
                400, f"label {str(body.label)[:80]!r} is none of this model's: give its index or name"
            )
        try:
            correct = self._feedback.judge(body.id, label=label, correct=body.correct)
        except KeyError:
            text = (
                f"no answered request with id {body.id[:80]!r} is remembered: feedback must come soon, to this version"
            )
            return error_response(404, text)
        return json_response({"id": body.id, "correct": correct})

    # infer

    def _start_infer(self, request: Request, respond: Respond) -> None:
        received_ns = time.perf_counter_ns()
        placed = self.placed
        if request.headers.get(b"content-encoding", b"identity") != b"identity":
            self._refuse(respond, Outcome.INVALID, error_response(415, "send the body without content-encoding"))
            return
        if b"origin" in request.headers:
            self._refuse(respond, Outcome.INVALID, _of_a_web_page())
            return
        if placed is None:
            self._refuse(respond, Outcome.REFUSED, _not_ready())
            return

        def work() -> _Inferred:
            return self._infer(placed, request)

        def done(finished: Finished[_Inferred]) -> None:
            self._finish_infer(finished, received_ns, respond)

        accept = self._engine.perform if len(request.body) <= _BRIEF_BYTES else self._engine.submit
        if not accept(work, done):
            text = f"{self._engine.pending} requests wait already: slow down, and try again after Retry-After"
            self._refuse(respond, Outcome.REFUSED, error_response(429, text, _RETRY))

    def _refuse(self, respond: Respond, outcome: Outcome, response: Response) -> None:
        self._tally.count(outcome, Timing(0))
        respond(response)

    def _infer(self, placed: PlacedModel, request: Request) -> _Inferred:
        """Return the answer; on the engine's thread."""
        infer = parse_infer(request.body, request.headers.get(_HEADER_LENGTH))
        answer = placed.infer(infer)
        body, header_length = render_infer(self._model, self._version, infer.id, answer.tensors)
        if header_length is None:
            response = Response(200, body, _JSON)
        else:
            response = Response(200, body, _BINARY, ((_HEADER_LENGTH, b"%d" % header_length),))
        return _Inferred(response, infer.id, answer.predicted, answer.compute_ns)

    def _finish_infer(self, finished: Finished[_Inferred], received_ns: int, respond: Respond) -> None:
        if isinstance(finished.error, Rejected):
            self._refuse(respond, Outcome.INVALID, error_response(400, str(finished.error)))
            return
        if finished.error is not None:
            logger.error("event=inference_failed model=%s", self._model, exc_info=finished.error)
            self._tally.count(Outcome.FAILURE, Timing(0))
            respond(error_response(500, f"the model failed: {str(finished.error)[:500]}"))
            return
        inferred = cast(_Inferred, finished.value)
        if inferred.request_id is not None:
            self._feedback.remember(inferred.request_id, inferred.predicted)
        respond(inferred.response)
        total_ns = time.perf_counter_ns() - received_ns
        self._tally.count(Outcome.SUCCESS, Timing(total_ns, finished.began_ns - received_ns, inferred.compute_ns))


def _not_ready() -> Response:
    return error_response(503, "the model is being loaded and tested: try again", _RETRY)


def _of_a_web_page() -> Response:
    """Return the refusal of what a browser posts: a web page may reach a loopback port, and ids may be guessed."""
    return error_response(403, "requests of web pages are not answered here")


def _not_allowed(method: bytes) -> Response:
    return error_response(405, f"use {method.decode()} here", ((b"allow", method),))
