"""Errors as answers: each of our errors, and what the framework refuses by itself, becomes a Problem body."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from regatta_fleet.errors import status_of
from regatta_fleet.schemas import Problem
from regatta_protocol.errors import RegattaError

__all__ = ["ANSWERS", "answer_with_problems", "problem"]

logger = logging.getLogger(__name__)

ANSWERS: dict[int | str, dict[str, object]] = {
    "4XX": {"model": Problem, "description": "What was asked cannot be done, and why"},
    "5XX": {"model": Problem, "description": "The server cannot do it now, and what to do"},
}
"""What OpenAPI says of every endpoint's errors."""


def problem(status: int, error: str, hint: str | None = None, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return a Problem as an answer."""
    body = Problem(error=error, hint=hint).model_dump(exclude_none=True)
    return JSONResponse(body, status_code=status, headers=headers)


def answer_with_problems(app: FastAPI) -> None:
    """Have the app answer every error by a Problem."""
    app.add_exception_handler(RegattaError, _ours)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(HTTPException, _framework)
    app.add_exception_handler(Exception, _unexpected)


async def _ours(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RegattaError)
    status = status_of(error)
    what, _, hint = str(error).partition(": ")  # messages read "what happened: what to do"
    if status >= 500:
        logger.warning("event=request_failed path=%s status=%d reason=%s", request.url.path, status, error)
    headers = {"Retry-After": "5"} if status in (429, 503) else None
    return problem(status, what, hint or None, headers)


async def _malformed(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return problem(422, f"{where}: {first['msg']}", "see /docs for what this endpoint takes")


async def _framework(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return problem(error.status_code, f"{request.method} {request.url.path}: {error.detail}", "see /docs")


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    logger.error("event=request_error path=%s", request.url.path, exc_info=error)
    return problem(500, "the server failed on this request", "its log has the details; please report it")
