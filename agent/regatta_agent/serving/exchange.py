"""What crosses between HTTP and those who answer: whole requests and responses, whichever protocol carried them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, NamedTuple

__all__ = ["Endpoint", "Handler", "Request", "Respond", "Response", "error_response", "json_response", "rendered"]

_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}


@dataclass(frozen=True)
class Endpoint:
    """Where connections come in, and what they must give there."""

    token: bytes | None = None  # every request needs it as `Authorization: Bearer`
    local: bool = True  # only this machine reaches it


class Request(NamedTuple):
    """A whole request. Header names are lower-case; of repeated headers the last counts."""

    method: bytes
    path: str
    headers: dict[bytes, bytes]
    body: bytes | memoryview
    local: bool = True  # it came from this machine
    timeout_us: int | None = None  # its sender waits so long, whatever its body says


class Response(NamedTuple):
    status: int
    body: bytes = b""
    content_type: bytes = b"application/json"
    headers: tuple[tuple[bytes, bytes], ...] = ()


Respond = Callable[[Response], None]
Handler = Callable[[Request, Respond], None]


def json_response(document: dict[str, Any], status: int = 200) -> Response:
    """Return `document` as a response."""
    return Response(status, json.dumps(document, separators=(",", ":")).encode())


def error_response(status: int, message: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> Response:
    """Return the protocol's error body."""
    return Response(status, json.dumps({"error": message}).encode(), headers=headers)


def rendered(response: Response, *, close: bool) -> bytes:
    """Return a response as HTTP/1.1 sends it; `close`: it is the connection's last."""
    parts = [
        b"HTTP/1.1 %d %s\r\ncontent-type: %s\r\ncontent-length: %d\r\n"
        % (response.status, _REASONS.get(response.status, b""), response.content_type, len(response.body))
    ]
    parts += [b"%s: %s\r\n" % header for header in response.headers]
    parts.append(b"connection: close\r\n\r\n" if close else b"\r\n")
    parts.append(response.body)
    return b"".join(parts)
