"""The routes of the system shared-memory extension (Triton's extension_shared_memory.md) over `Regions`.

GET  /v2/systemsharedmemory[/region/R]/status
POST /v2/systemsharedmemory/region/R/register      {"key": …, "offset": …, "byte_size": …}
POST /v2/systemsharedmemory[/region/R]/unregister
"""

from __future__ import annotations

import json
from urllib.parse import unquote

from regatta_agent.serving.exchange import Request, Response, error_response
from regatta_agent.serving.shared_memory import RegionBody, Regions
from regatta_protocol.plain import read_json

__all__ = ["answer_regions"]

_MAX_BODY_BYTES = 4096


def answer_regions(regions: Regions | None, request: Request, parts: list[str]) -> Response:
    """Return the answer to a request below /v2/systemsharedmemory.

    Args:
        regions: None where shared memory is off.
        request: the request.
        parts: its path below /v2/systemsharedmemory.

    Raises:
        Rejected: when it cannot be done as asked.
    """
    if regions is None or not request.local:
        text = "shared memory is not offered here: set shared_memory in agent.toml, and ask from this machine"
        return error_response(404, text)
    name = unquote(parts[1]) if len(parts) == 3 and parts[0] == "region" else None
    action = parts[-1] if name is not None or len(parts) == 1 else ""
    method = b"GET" if action == "status" else b"POST"
    if action not in ("status", "register", "unregister") or (action == "register" and name is None):
        return error_response(404, f"there is nothing at {request.path[:200]!r}")
    if request.method != method:
        return error_response(405, f"use {method.decode()} here", ((b"allow", method),))
    if b"origin" in request.headers:
        return error_response(403, "requests of web pages are not answered here")
    if action == "status":
        return Response(200, json.dumps(regions.status(name)).encode())
    if action == "register" and name is not None:
        regions.register(name, read_json(RegionBody, bytes(request.body), _MAX_BODY_BYTES))
    else:
        regions.unregister(name)
    return Response(200)
