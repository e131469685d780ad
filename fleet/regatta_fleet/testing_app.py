"""The fake fleet's operator API over HTTP, and a server for it on loopback: for tests of the API's clients."""

from __future__ import annotations

import hmac
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from regatta_fleet import page
from regatta_fleet.schemas import (
    BatchDetail,
    DeviceSummary,
    FleetEvent,
    GroupPolicy,
    GroupWindows,
    ModelSummary,
    Problem,
    RolloutDetail,
    RolloutState,
    TokenRequest,
    TokenResponse,
    WindowsRequest,
)
from regatta_fleet.testing import FakeFleet, FakeProblem
from regatta_protocol.ids import DeviceId, digest_of_bytes
from regatta_protocol.manifest import MAX_FILE_BYTES
from regatta_protocol.policy import Policy

__all__ = ["fake_app", "serve"]


def fake_app(fleet: FakeFleet) -> FastAPI:
    """Return the HTTP application over the fake fleet's state."""
    app = FastAPI()
    _add_errors(app)

    def authorized(request: Request) -> None:
        given = request.headers.get("Authorization", "").encode()
        if not hmac.compare_digest(given, f"Bearer {fleet.token}".encode()):
            raise FakeProblem(401, "the token is missing or wrong")

    guarded = [Depends(authorized)]

    def add(method: str, path: str, answer: object, **options: object) -> None:
        app.add_api_route(
            "/api/v1" + path,
            answer,  # type: ignore[arg-type]  # FastAPI takes any callable
            methods=[method],
            dependencies=guarded,
            **options,  # type: ignore[arg-type]  # keyword options of FastAPI's
        )

    def create_token(request: TokenRequest) -> TokenResponse:
        fleet.tokens.append(request)
        return TokenResponse(token=f"rgt-{secrets.token_hex(8)}", expires_at=time.time() + request.valid_s)

    def devices() -> tuple[DeviceSummary, ...]:
        return tuple(fleet.devices.values())

    def revoke(device: str) -> Response:
        fleet.devices[device] = fleet.device(DeviceId(device)).model_copy(update={"revoked": True, "up": False})
        return Response(status_code=204)

    def has_blob(digest: str) -> Response:
        return Response(status_code=200 if digest in fleet.blobs else 404)

    async def put_blob(digest: str, request: Request) -> Response:
        data = bytearray()
        async for piece in request.stream():
            data += piece
            if len(data) > MAX_FILE_BYTES:
                raise FakeProblem(413, "the file is too large")
        if digest_of_bytes(bytes(data)) != digest:
            raise FakeProblem(422, f"the {len(data)} bytes sent have another digest than {digest}", "send it again")
        fleet.blobs[digest] = bytes(data)
        return Response(status_code=204)

    def models() -> tuple[ModelSummary, ...]:
        return tuple(fleet.model(name) for name in fleet.versions)

    def rollouts() -> tuple[RolloutDetail, ...]:
        return tuple(fleet.rollouts.values())

    def events(since: float | None = None) -> tuple[FleetEvent, ...]:
        return tuple(event for event in fleet.events if since is None or event.at > since)

    def abort(rollout: str) -> RolloutDetail:
        return fleet.finish(rollout, RolloutState.ABORTED, "aborted by the operator")

    def promote(rollout: str) -> RolloutDetail:
        return fleet.finish(rollout, RolloutState.RUNNING, "promoted by the operator")

    def policies() -> tuple[GroupPolicy, ...]:
        return tuple(fleet.policies[key] for key in sorted(fleet.policies, key=lambda key: (key[0], key[1] or "")))

    def set_policy(group: str, policy: Policy, model: str | None = None) -> GroupPolicy:
        if model is not None:
            fleet.known(model)
        if policy.model_extra or not policy.model_fields_set:
            raise FakeProblem(422, f"the policy sets {', '.join(policy.model_extra or {}) or 'nothing'}")
        rule = {"group": group, "model": model, "policy": policy.model_dump(exclude_unset=True), "devices": 0}
        fleet.policies[group, model] = GroupPolicy.model_validate(rule)
        return fleet.policies[group, model]

    def clear_policy(group: str, model: str | None = None) -> Response:
        if fleet.policies.pop((group, model), None) is None:
            raise FakeProblem(404, f"no policy is set for {group}", "`regatta policy show` lists what is")
        return Response(status_code=204)

    def windows() -> tuple[GroupWindows, ...]:
        return tuple(fleet.windows[group] for group in sorted(fleet.windows))

    def set_windows(group: str, request: WindowsRequest) -> GroupWindows:
        fleet.windows[group] = GroupWindows(group=group, windows=request.windows)
        return fleet.windows[group]

    def clear_windows(group: str) -> Response:
        if fleet.windows.pop(group, None) is None:
            raise FakeProblem(404, f"{group}: no update window is set", "`regatta window show` lists what is")
        return Response(status_code=204)

    def output(batch: str, device: str) -> Response:
        return Response(fleet.output(batch, device), media_type="application/octet-stream")

    def batches() -> tuple[BatchDetail, ...]:
        return tuple(reversed(fleet.batches.values()))

    add("POST", "/batch", fleet.start_batch, status_code=201)
    add("GET", "/batch", batches)
    add("GET", "/batch/{batch}", fleet.batch)
    add("POST", "/batch/{batch}/cancel", fleet.cancel_batch)
    add("POST", "/batch/{batch}/results", fleet.ask_results)
    add("GET", "/batch/{batch}/results/{device}", output)
    add("DELETE", "/batch/{batch}/results", fleet.forget_results)
    add("GET", "/policies", policies, response_model_exclude_unset=True)
    add("PUT", "/policies/{group}", set_policy, response_model_exclude_unset=True)
    add("DELETE", "/policies/{group}", clear_policy)
    add("GET", "/windows", windows)
    add("PUT", "/windows/{group}", set_windows)
    add("DELETE", "/windows/{group}", clear_windows)
    add("GET", "/status", fleet.status)
    add("POST", "/tokens", create_token)
    add("GET", "/devices", devices)
    add("GET", "/devices/{device}", fleet.device)
    add("DELETE", "/devices/{device}", revoke)
    add("HEAD", "/blobs/{digest}", has_blob)
    add("PUT", "/blobs/{digest}", put_blob)
    add("POST", "/models/{name}/versions", fleet.create_version)
    add("GET", "/models", models)
    add("GET", "/models/{name}", fleet.model)
    add("GET", "/models/{name}/versions/{version}", fleet.version)
    add("POST", "/rollouts", fleet.start)
    add("GET", "/rollouts", rollouts)
    add("GET", "/rollouts/{rollout}", fleet.rollout)
    add("POST", "/rollouts/{rollout}/abort", abort)
    add("POST", "/rollouts/{rollout}/promote", promote)
    add("GET", "/events", events)
    newest = lambda count: tuple(reversed(fleet.batches.values()))[:count]  # noqa: E731
    app.include_router(page.router(fleet.status, lambda device: fleet.devices.get(device), newest, fleet.token))
    return app


@contextmanager
def serve(app: FastAPI, port: int = 0) -> Iterator[str]:
    """Serve the application on loopback in a thread; yields its address, and returns when it has stopped."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=10)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(FakeProblem)
    def problem(request: Request, err: FakeProblem) -> Response:
        return JSONResponse(err.problem.model_dump(mode="json"), status_code=err.code)

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, err: RequestValidationError) -> Response:
        first = err.errors()[0]
        text = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
        return JSONResponse(Problem(error=text).model_dump(mode="json"), status_code=422)
