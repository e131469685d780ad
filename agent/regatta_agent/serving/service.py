"""What a worker answers: the routes of the Open Inference Protocol v2, feedback and metrics. Runs on the loop.

    GET  /v2                                       server metadata
    GET  /v2/health/live, /v2/health/ready
    GET  /v2/models/M[/versions/V]                 model metadata
    GET  /v2/models/M[/versions/V]/ready
    GET  /v2/models/M[/versions/V]/stats           counts and times, Triton's statistics extension
    POST /v2/models/M[/versions/V]/infer
    POST /v2/models/M[/versions/V]/feedback        {"id": …, "label": name or index} or {"id": …, "correct": bool}
    /v2/systemsharedmemory/…                       regions.py, where shared memory is on
    GET  /metrics                                  OpenMetrics

An unready server or model answers 400, as the protocol's text asks ("a 4xx status code indicates false"). Errors are
`{"error": text}`. Infer requests are inferring.py's; nothing here blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import regatta_protocol
from regatta_agent.serving.exchange import Request, Respond, Response, error_response, json_response
from regatta_agent.serving.feedback import Feedback
from regatta_agent.serving.inferring import Inferences, not_ready, of_a_web_page
from regatta_agent.serving.metrics import CONTENT_TYPE, openmetrics, statistics
from regatta_agent.serving.regions import answer_regions
from regatta_agent.serving.shared_memory import Regions
from regatta_agent.serving.window import Tally
from regatta_protocol.bounds import Bounds, Strict
from regatta_protocol.errors import Rejected
from regatta_protocol.plain import read_json

__all__ = ["Service"]

_EXTENSIONS = [
    "binary_tensor_data",
    "classification",
    "feedback",
    "processed",
    "schedule_policy",
    "stacked",
    "statistics",
]
_SHARED_MEMORY = "system_shared_memory"
_MAX_FEEDBACK_BYTES = 16_384


@dataclass(frozen=True, kw_only=True)
class _FeedbackBody(Strict):
    id: Annotated[str, Bounds(min_length=1, max_length=256)]
    label: int | str | None = None
    correct: bool | None = None


class Service:
    """The handler of every request."""

    def __init__(
        self,
        inferences: Inferences,
        tally: Tally,
        feedback: Feedback,
        connections: Callable[[], int],
        regions: Regions | None = None,
    ) -> None:
        self._inferences = inferences
        self._tally = tally
        self._feedback = feedback
        self._connections = connections
        self._regions = regions
        self._model = tally.placement.model
        self._version = tally.placement.version
        self._infer_paths = {self._path("infer", versioned=False), self._path("infer", versioned=True)}
        self.draining = False
        self.degraded: str | None = None  # why another than the winner serves

    def _path(self, action: str, *, versioned: bool) -> str:
        return f"/v2/models/{self._model}{f'/versions/{self._version}' if versioned else ''}/{action}"

    def handle(self, request: Request, respond: Respond) -> None:
        """Answer `request`, now or later."""
        if request.method == b"POST" and request.path in self._infer_paths:
            self._inferences.start(request, respond)
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
        if parts[1] == "systemsharedmemory":
            return answer_regions(self._regions, request, parts[2:])
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
        if rest == ["stats"]:
            return self._get(request, lambda: json_response({"model_stats": [statistics(self._tally)]}))
        if rest == ["feedback"]:
            return self._judge(request) if request.method == b"POST" else _not_allowed(b"POST")
        if rest == ["infer"]:
            return _not_allowed(b"POST")
        return error_response(404, f"there is nothing at {request.path[:200]!r}")

    def _get(self, request: Request, answer: Callable[[], Response]) -> Response:
        return answer() if request.method == b"GET" else _not_allowed(b"GET")

    @property
    def _ready(self) -> bool:
        return self._inferences.placed is not None and not self.draining

    def _server_metadata(self) -> Response:
        extensions = _EXTENSIONS if self._regions is None else [*_EXTENSIONS, _SHARED_MEMORY]
        return json_response({"name": "regatta", "version": regatta_protocol.__version__, "extensions": extensions})

    def _model_metadata(self) -> Response:
        placed = self._inferences.placed
        if placed is None:
            return not_ready()
        parameters: dict[str, Any] = {"placement": self._tally.placement.candidate_id}
        parameters["processing"] = placed.processor.describe()
        if self.degraded is not None:
            parameters["degraded"] = self.degraded
        return json_response(placed.interface.metadata(self._model, self._version, parameters))

    def _metrics(self) -> Response:
        text = openmetrics(
            self._tally,
            pending=self._inferences.pending,
            connections=self._connections(),
            degraded=self.degraded is not None,
        )
        return Response(200, text.encode(), CONTENT_TYPE.encode())

    def _judge(self, request: Request) -> Response:
        if b"origin" in request.headers:
            return of_a_web_page()
        placed = self._inferences.placed
        if placed is None:
            return not_ready()
        body = read_json(_FeedbackBody, bytes(request.body), _MAX_FEEDBACK_BYTES)
        if (body.label is None) == (body.correct is None):
            return error_response(400, "feedback has exactly one of label and correct")
        label = placed.interface.class_of(body.label) if isinstance(body.label, str) else body.label
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


def _not_allowed(method: bytes) -> Response:
    return error_response(405, f"use {method.decode()} here", ((b"allow", method),))
