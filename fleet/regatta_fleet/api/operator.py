"""The operator's API: /api/v1/…, with the status page beside it. Loopback only, bearer token on every endpoint.

Handlers that read use short transactions of their own; those that push a version or move a rollout hand a call to
the controller's thread and wait for its answer (controller.py).
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from regatta_fleet.api.batch import add_batch
from regatta_fleet.api.limits import BodyLimit
from regatta_fleet.api.problems import ANSWERS, answer_with_problems
from regatta_fleet.api.windows import add_windows
from regatta_fleet.batches import batching
from regatta_fleet.batches.results import ResultsStore
from regatta_fleet.database.engine import Database
from regatta_fleet.devices.enrolling import Enroller
from regatta_fleet.errors import NotFound, Unknown
from regatta_fleet.models.blobs import BlobStore
from regatta_fleet.models.registry import Registry
from regatta_fleet.rollouts import governing, rolling
from regatta_fleet.rollouts.controller import Controller
from regatta_fleet.schemas import (
    BatchDetail,
    BundleDraft,
    DeviceDetail,
    DeviceSummary,
    FleetEvent,
    FleetStatus,
    GroupPolicy,
    ModelSummary,
    RolloutDetail,
    RolloutRequest,
    TokenRequest,
    TokenResponse,
    VersionDetail,
)
from regatta_fleet.views import Views
from regatta_protocol.errors import Rejected, TooLarge
from regatta_protocol.ids import DeviceId, DeviceIdField, Digest, DigestField, ModelNameField, ModelRef
from regatta_protocol.manifest import MAX_FILE_BYTES, Manifest
from regatta_protocol.policy import KnownPolicy

__all__ = ["OperatorParts", "operator_app"]

_MAX_BODY_BYTES = 1024 * 1024  # a draft of 64 variants takes some 100 kB
_BLOBS = "/api/v1/blobs/"
_BEARER = HTTPBearer(auto_error=False, description="The token of server.json")
_RolloutId = Annotated[str, Path(max_length=64)]
_Group = Annotated[str, Path(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
_Version = Annotated[int, Path(ge=1, lt=2**31)]


@dataclass(frozen=True)
class OperatorParts:
    """What the endpoints work with."""

    token: str
    views: Views
    blobs: BlobStore
    database: Database
    registry: Registry
    enroller: Enroller
    results: ResultsStore
    controller: Controller
    healthy: Callable[[], bool]
    new_id: Callable[[], str]
    clock: Callable[[], float] = time.time


def operator_app(parts: OperatorParts) -> FastAPI:
    """Return the app."""
    app = FastAPI(
        title="Regatta fleet",
        version=parts.views.program,
        description="The operator's API of a Regatta fleet. Send the token of server.json as a bearer token.",
        redoc_url=None,
    )
    answer_with_problems(app)
    app.add_middleware(BodyLimit, limit_bytes=_MAX_BODY_BYTES, exempt=lambda path: path.startswith(_BLOBS))

    @app.get("/healthz", tags=["server"], responses=ANSWERS)
    def health(response: Response) -> dict[str, bool]:
        """Say whether the server works: its controller runs and the broker is connected. Needs no token."""
        well = parts.healthy()
        response.status_code = 200 if well else 503
        return {"ok": well}

    guarded = APIRouter(prefix="/api/v1", dependencies=[Depends(_guard(parts.token))], responses=ANSWERS)
    _add_fleet(guarded, parts)
    _add_models(guarded, parts)
    _add_rollouts(guarded, parts)
    _add_policies(guarded, parts)
    add_windows(guarded, parts.database, parts.controller, parts.clock)
    add_batch(guarded, parts.database, parts.controller, parts.results, parts.clock)
    app.include_router(guarded)
    _add_page(app, parts)
    return app


def _guard(token: str) -> Callable[[HTTPAuthorizationCredentials | None], None]:
    def check(given: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]) -> None:
        if given is None or not hmac.compare_digest(given.credentials.encode(), token.encode()):
            raise Unknown("the bearer token is missing or wrong: take the one of server.json in the fleet's home")

    return check


def _add_fleet(api: APIRouter, parts: OperatorParts) -> None:
    @api.get("/status", tags=["fleet"])
    def status() -> FleetStatus:
        """The whole fleet on one page."""
        return parts.views.status()

    @api.get("/events", tags=["fleet"])
    def events(since: Annotated[float | None, Query(allow_inf_nan=False)] = None) -> tuple[FleetEvent, ...]:
        """The history from `since` (seconds since 1970) on, or its newest lines; oldest first."""
        return parts.views.events(since)

    @api.post("/tokens", tags=["devices"], status_code=201)
    def make_token(request: TokenRequest) -> TokenResponse:
        """Make a one-time enrolment token. It is shown only here."""
        return parts.enroller.make_token(request, parts.clock())

    @api.get("/devices", tags=["devices"])
    def devices() -> tuple[DeviceSummary, ...]:
        """Every device."""
        return parts.views.devices()

    @api.get("/devices/{device}", tags=["devices"])
    def device(device: DeviceIdField) -> DeviceDetail:
        """One device with its races."""
        return parts.views.device(device)

    @api.delete("/devices/{device}", tags=["devices"], status_code=204)
    def revoke(device: DeviceIdField) -> None:
        """Revoke a device's certificate and take it out of the fleet."""
        parts.enroller.revoke(device, parts.clock())


def _add_models(api: APIRouter, parts: OperatorParts) -> None:
    @api.head("/blobs/{digest}", tags=["models"])
    def has_blob(digest: DigestField) -> Response:
        """Say whether a file is here, by its SHA-256."""
        size_bytes = parts.blobs.size_bytes(digest)
        if size_bytes is None:
            raise NotFound(f"there is no file {digest}: upload it first")
        return Response(headers={"X-Size-Bytes": str(size_bytes)})

    @api.put(
        "/blobs/{digest}",
        tags=["models"],
        status_code=201,
        openapi_extra={"requestBody": {"content": {"application/octet-stream": {}}, "required": True}},
    )
    async def put_blob(digest: DigestField, request: Request) -> dict[str, int]:
        """Store a file under its SHA-256. Nothing is stored when the content has another."""
        return {"size_bytes": await _receive(parts.blobs, digest, request)}

    @api.post("/models/{name}/versions", tags=["models"], status_code=201)
    def push(name: ModelNameField, draft: BundleDraft) -> Manifest:
        """Sign and store a bundle, whose files are uploaded, as the model's next version."""
        parts.blobs.require(tuple(variant.file for variant in draft.variants))  # refused here, it costs no turn
        return parts.controller.call(lambda: parts.registry.push(name, draft, parts.clock()))

    @api.get("/models", tags=["models"])
    def models() -> tuple[ModelSummary, ...]:
        """Every model."""
        return parts.views.models()

    @api.get("/models/{name}", tags=["models"])
    def model(name: ModelNameField) -> ModelSummary:
        """One model."""
        return parts.views.model(name)

    @api.get("/models/{name}/versions/{version}", tags=["models"])
    def version(name: ModelNameField, version: _Version) -> VersionDetail:
        """A version's manifest, and what the devices made of it."""
        return parts.views.version(ModelRef(name, version))


def _add_rollouts(api: APIRouter, parts: OperatorParts) -> None:
    @api.post("/rollouts", tags=["rollouts"], status_code=201)
    def start(request: RolloutRequest) -> RolloutDetail:
        """Begin to send a version to devices in waves."""
        identifier = parts.new_id()

        def begin() -> None:
            now = parts.clock()
            with parts.database.write() as tx:
                rolling.start_rollout(tx, identifier, request, now)
                changed = rolling.advance_all(tx, now)
            parts.controller.tell(changed)

        parts.controller.call(begin)
        return parts.views.rollout(identifier)

    @api.get("/rollouts", tags=["rollouts"])
    def rollouts() -> tuple[RolloutDetail, ...]:
        """The newest rollouts, newest first."""
        return parts.views.rollouts()

    @api.get("/rollouts/{rollout}", tags=["rollouts"])
    def rollout(rollout: _RolloutId) -> RolloutDetail:
        """One rollout with its waves."""
        return parts.views.rollout(rollout)

    @api.post("/rollouts/{rollout}/abort", tags=["rollouts"])
    def abort(rollout: _RolloutId) -> RolloutDetail:
        """End a rollout and send every device that it reached back to what it ran before."""
        return _decide(rolling.abort_rollout, rollout)

    @api.post("/rollouts/{rollout}/promote", tags=["rollouts"])
    def promote(rollout: _RolloutId) -> RolloutDetail:
        """Pass the current wave without its gate; a rollout that is held goes on."""
        return _decide(rolling.promote_rollout, rollout)

    def _decide(decision: rolling.Decision, identifier: str) -> RolloutDetail:
        def carry_out() -> None:
            with parts.database.write() as tx:
                changed = decision(tx, identifier, parts.clock())
            parts.controller.tell(changed)

        parts.controller.call(carry_out)
        return parts.views.rollout(identifier)


def _add_policies(api: APIRouter, parts: OperatorParts) -> None:
    @api.get("/policies", tags=["policies"], response_model_exclude_unset=True)
    def policies() -> tuple[GroupPolicy, ...]:
        """What is set for groups of devices, by group and model."""
        with parts.database.read() as tx:
            return governing.describe_policies(tx)

    @api.put("/policies/{group}", tags=["policies"], response_model_exclude_unset=True)
    def set_policy(group: _Group, policy: KnownPolicy, model: ModelNameField | None = None) -> GroupPolicy:
        """Set the given fields for a group (`all`: every device) and a model, or every model."""

        def carry_out() -> int:
            with parts.database.write() as tx:
                changed = governing.set_policy(tx, group, model, policy, parts.clock())
            parts.controller.tell(changed)
            return len(changed)

        return GroupPolicy(group=group, model=model, policy=policy, devices=parts.controller.call(carry_out))

    @api.delete("/policies/{group}", tags=["policies"], status_code=204)
    def clear_policy(group: _Group, model: ModelNameField | None = None) -> None:
        """Take away what is set for a group and a model."""

        def carry_out() -> None:
            with parts.database.write() as tx:
                changed = governing.clear_policy(tx, group, model, parts.clock())
            parts.controller.tell(changed)

        parts.controller.call(carry_out)


def _add_page(app: FastAPI, parts: OperatorParts) -> None:
    from regatta_fleet.page import router  # not at the top: the page brings Jinja

    def device(identifier: DeviceId) -> DeviceDetail:
        return parts.views.device(identifier)

    def batches(count: int) -> tuple[BatchDetail, ...]:
        with parts.database.read() as tx:
            return batching.list_batches(tx, count)

    app.include_router(router(parts.views.status, device, batches, parts.token))


async def _receive(blobs: BlobStore, digest: Digest, request: Request) -> int:
    said = request.headers.get("content-length", "")
    if said.isdigit() and int(said) > MAX_FILE_BYTES:
        raise TooLarge(f"a file of {said} bytes is over the limit of {MAX_FILE_BYTES}")
    with blobs.receive(digest) as upload:
        received = 0
        async for piece in request.stream():
            received += len(piece)
            await run_in_threadpool(upload.write, piece)
        if said.isdigit() and received != int(said):
            raise Rejected(f"the upload ended after {received} of {said} bytes: send it again")
        return await run_in_threadpool(upload.finish, blobs.path(digest))
