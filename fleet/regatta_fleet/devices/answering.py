"""Answers to what devices ask: signed metadata, and what a device of the same kind has measured."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from regatta_fleet.database import race_results
from regatta_fleet.database.engine import Database
from regatta_fleet.models.registry import Metadata
from regatta_protocol.codec import encode_zlib
from regatta_protocol.errors import RegattaError, Rejected, Retryable
from regatta_protocol.ids import DIGEST_PATTERN, Digest
from regatta_protocol.messages import Request, Response

__all__ = ["Answers"]


class Answers:
    """Looks them up. Used by the controller's thread."""

    def __init__(self, database: Database, metadata: Metadata, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._metadata = metadata
        self._clock = clock

    def to(self, request: Request) -> bytes:
        """Return the answer as it travels; what cannot be answered is told as an error."""
        try:
            return encode_zlib(self._response(request))
        except RegattaError as err:
            retryable = isinstance(err, Retryable)
            return encode_zlib(Response(id=request.id, error=str(err)[:2000], retryable=retryable))

    def _response(self, request: Request) -> Response:
        if request.method == "race":
            return self._race_result(request)
        if request.method != "metadata":
            raise Rejected(f"this server knows no method {request.method!r}: update it")
        target, root_version = request.params.get("target"), request.params.get("root_version")
        if not isinstance(target, str) or not isinstance(root_version, int):
            raise Rejected("a metadata request needs params target (text) and root_version (number)")
        return Response(id=request.id, files=self._metadata.files_for(target, root_version), at=self._clock())

    def _race_result(self, request: Request) -> Response:
        key = request.params.get("key")
        if not isinstance(key, str) or re.fullmatch(DIGEST_PATTERN[1:-1], key) is None:
            raise Rejected("a race request needs param key (64 hexadecimal digits)")
        with self._database.read() as tx:
            result = race_results.find_result(tx, Digest(key))
        if result is None:
            raise Rejected("no device of this kind has raced these files yet: race in full")
        return Response(id=request.id, race=result)
