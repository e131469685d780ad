"""How a call ends that is not answered: what HTTP says by a status and a body, as gRPC has it."""

from __future__ import annotations

import json
from typing import Any, NamedTuple, NoReturn

import grpc

from regatta_agent.serving.exchange import Response

__all__ = ["Context", "Ending", "Refused", "refused_by"]

Context = grpc.aio.ServicerContext[Any, Any]  # of calls whose messages are bytes

_DETAILS = 1000  # characters; a client takes 8 KiB of trailers
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


class Ending(NamedTuple):
    """How a call ends that is not answered; after `retry_after_s` another may do better."""

    code: grpc.StatusCode
    details: str
    retry_after_s: int | None = None

    async def of(self, context: Context) -> NoReturn:
        """End the call.

        grpcio raises in here, and keeps that until its garbage is collected. So this is to be called where no exception
        is at hand, whose frames hold what the caller sent.
        """
        trailers: tuple[tuple[str, str], ...] = ()
        if self.retry_after_s is not None:
            # The second is gRFC A6's, which a client with a retry policy obeys by itself.
            after = str(self.retry_after_s)
            trailers = (("retry-after", after), ("grpc-retry-pushback-ms", f"{after}000"))
        await context.abort(self.code, self.details, trailers)


class Refused(Exception):
    """A call is to end so."""

    def __init__(self, code: grpc.StatusCode, details: str, retry_after_s: int | None = None) -> None:
        super().__init__(details)
        self.ending = Ending(code, details[:_DETAILS], retry_after_s)


def refused_by(response: Response) -> Refused:
    """Return what a response other than 200 is over gRPC."""
    after = dict(response.headers).get(b"retry-after")
    code = _CODES.get(response.status, grpc.StatusCode.UNKNOWN)
    return Refused(code, json.loads(response.body)["error"], None if after is None else int(after))
