"""The page's addresses: the fleet, one device, and the three files they load.

Whoever opens `/?token=…` gets a cookie and is sent to `/`, so that the token does not stay in the address bar. The
cookie is no key to the API: it is derived from the token and opens only this page, because a browser sends the
cookies of 127.0.0.1 to servers on its other ports too. Its name carries the port for the same reason: two fleets
on one machine do not log each other out.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable, Sequence
from functools import cache
from importlib import resources

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from regatta_fleet import figures, verdicts
from regatta_fleet.page import view
from regatta_fleet.page.stages import STAGES, stage_bars
from regatta_fleet.schemas import BatchDetail, DeviceDetail, FleetStatus
from regatta_protocol.errors import Rejected
from regatta_protocol.ids import DeviceId, parse_device_id

__all__ = ["cookie_name", "page_cookie", "router"]

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_FILES = {"page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}
_COOKIE_DAYS = 30


def cookie_name(port: int | None) -> str:
    """Return the name of the page's cookie on a server's port."""
    return f"regatta-page-{port or 80}"


def page_cookie(token: str) -> str:
    """Return the cookie that opens the page of the server with this token, and nothing else."""
    return hmac.new(token.encode(), b"regatta status page", hashlib.sha256).hexdigest()


def router(
    status: Callable[[], FleetStatus],
    device: Callable[[DeviceId], DeviceDetail | None],
    batches: Callable[[int], Sequence[BatchDetail]],
    token: str,
) -> APIRouter:
    """Return the page's routes: `/`, `/device/{id}` and `/page/…`.

    Args:
        status: the fleet as it is.
        device: one device with its races, or None (or Rejected raised) when there is none.
        batches: the newest so many batches.
        token: the operator's; who shows it, or the cookie made of it, sees the page.
    """
    pages = APIRouter(include_in_schema=False)
    expected = page_cookie(token)

    def opened(request: Request) -> bool:
        shown = request.cookies.get(cookie_name(request.url.port), "")
        return hmac.compare_digest(shown.encode(), expected.encode())

    def locked() -> Response:
        return _html("locked.html", 401)

    def detail(device_id: DeviceId) -> DeviceDetail | None:
        try:
            return device(device_id)
        except Rejected:
            return None

    @pages.get("/")
    def fleet_page(request: Request) -> Response:
        given = request.query_params.get("token")
        if given is not None:
            return _unlock(request, expected) if hmac.compare_digest(given.encode(), token.encode()) else locked()
        if not opened(request):
            return locked()
        shown = view.fleet_view(status())
        details = (detail(one.id) for one in view.raced_devices(shown))
        races = view.race_views(one for one in details if one is not None)
        jobs = [view.batch_view(one) for one in batches(view.MAX_BATCHES)]
        return _html("fleet.html", view=shown, races=races, batches=jobs, fleet=shown.status.fleet)

    @pages.get("/device/{device_id}")
    def device_page(request: Request, device_id: str) -> Response:
        if not opened(request):
            return locked()
        try:
            found = detail(parse_device_id(device_id))
        except Rejected:
            found = None
        if found is None:
            return _html("missing.html", 404, device=device_id[:64])
        races = view.race_views([found])
        stages = stage_bars(found)
        return _html(
            "device.html", device=found, rows=view.model_rows(found), stages=stages, stage_names=STAGES, races=races
        )

    @pages.get("/page/{name}")
    def static_file(name: str) -> Response:
        kind = _FILES.get(name)
        if kind is None:
            return _html("missing.html", 404, device=None)
        return Response(_file(name), media_type=kind, headers={**_HEADERS, "Cache-Control": "no-cache"})

    return pages


def _unlock(request: Request, cookie: str) -> Response:
    answer = RedirectResponse("/", status_code=303, headers={**_HEADERS, "Cache-Control": "no-store"})
    answer.set_cookie(
        cookie_name(request.url.port),
        cookie,
        max_age=_COOKIE_DAYS * 86_400,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return answer


def _html(template: str, code: int = 200, **values: object) -> Response:
    body = _templates().get_template(template).render(now=time.time(), **values).encode()
    return HTMLResponse(body, status_code=code, headers={**_HEADERS, "Cache-Control": "private, no-cache"})


@cache
def _templates() -> Environment:
    found = Environment(
        loader=PackageLoader("regatta_fleet.page"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    found.filters.update(
        latency=figures.latency,
        size=figures.size,
        share=figures.share,
        ratio=figures.ratio,
        power=figures.power,
        energy=figures.energy,
        clock=figures.clock,
        number=figures.count,
        clean=figures.one_line,
        took=verdicts.race_took,
        words=lambda state: figures.one_line(str(state).replace("_", " ")),
    )
    found.globals.update(progress=verdicts.progress)
    return found


@cache
def _file(name: str) -> bytes:
    return resources.files("regatta_fleet.page").joinpath("static").joinpath(name).read_bytes()
