"""The devices' API, HTTPS with the fleet's own authority: enrolment, renewal, outputs of batch jobs. All else is MQTT.

`GET /api/v1/ca` is public (the token's fingerprint tells the device whether to believe it). Attempts to enrol or to
renew are limited for each address and for all together; secrets of 192 bits cannot be guessed, so this only bounds the
work.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated

from fastapi import FastAPI, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from regatta_fleet.api.limits import BodyLimit, RateLimit
from regatta_fleet.api.problems import ANSWERS, answer_with_problems
from regatta_fleet.batches.receiving import Receiver
from regatta_fleet.devices.enrolling import Enroller
from regatta_fleet.errors import TooMany
from regatta_provisioning.enrollment import (
    CA_PATH,
    ENROLL_PATH,
    MAX_ENROLL_BYTES,
    RENEW_PATH,
    EnrollRequest,
    EnrollResponse,
    RenewRequest,
    RenewResponse,
)
from regatta_provisioning.uploading import RESULTS_PATH, ResultsOffer, ResultsTicket

__all__ = ["device_app"]

_ADDRESS_BURST, _ADDRESS_PER_S = 60.0, 1.0  # a lab's devices behind one address enrol together
_FLEET_BURST, _FLEET_PER_S = 200.0, 20.0  # one takes some 3 ms of CPU


def device_app(
    enroller: Enroller,
    receiver: Receiver,
    version: str,
    clock: Callable[[], float] = time.time,
    monotonic: Callable[[], float] = time.monotonic,
) -> FastAPI:
    """Return the app."""
    app = FastAPI(title="Regatta devices", version=version, docs_url=None, redoc_url=None)
    answer_with_problems(app)
    app.add_middleware(BodyLimit, limit_bytes=MAX_ENROLL_BYTES)
    by_address = RateLimit(_ADDRESS_BURST, _ADDRESS_PER_S, monotonic)
    for_all = RateLimit(_FLEET_BURST, _FLEET_PER_S, monotonic, keys=1)

    @app.get(CA_PATH, responses=ANSWERS)
    def ca() -> Response:
        """The fleet's authority (PEM). Believe it only if its fingerprint is the token's."""
        return Response(enroller.facts.ca_pem, media_type="application/x-pem-file")

    @app.post(ENROLL_PATH, responses=ANSWERS)
    async def enroll(body: EnrollRequest, request: Request) -> EnrollResponse:
        """Exchange a one-time token and a certificate request for a certificate."""
        address = request.client.host if request.client is not None else ""
        if not by_address.allow(address) or not for_all.allow(""):
            raise TooMany("too many attempts to enrol at the moment: try again in some seconds")
        return await run_in_threadpool(enroller.enroll, body, clock())

    @app.post(RENEW_PATH, responses=ANSWERS)
    async def renew(body: RenewRequest, request: Request) -> RenewResponse:
        """Exchange a certificate that ends soon, or has ended, for the next one of the same key."""
        address = request.client.host if request.client is not None else ""
        if not by_address.allow(address) or not for_all.allow(""):
            raise TooMany("too many requests at the moment: try again in some seconds")
        return await run_in_threadpool(enroller.renew, body, clock())

    @app.post(RESULTS_PATH, responses=ANSWERS)
    async def offer(body: ResultsOffer, request: Request) -> ResultsTicket:
        """Offer the output of a batch job that the fleet asked for; the answer says how much of it is here."""
        address = request.client.host if request.client is not None else ""
        if not by_address.allow(address) or not for_all.allow(""):
            raise TooMany("too many requests at the moment: try again in some seconds")
        return await run_in_threadpool(receiver.offer, body, clock())

    @app.put(
        RESULTS_PATH + "/{ticket}",
        responses=ANSWERS,
        openapi_extra={"requestBody": {"content": {"application/octet-stream": {}}, "required": True}},
    )
    async def take(
        ticket: Annotated[str, Path(max_length=128)], offset: Annotated[int, Query(ge=0)], request: Request
    ) -> ResultsTicket:
        """Store the next piece of an output."""
        return await run_in_threadpool(receiver.take, ticket, offset, await request.body(), clock())

    return app
