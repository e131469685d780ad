"""Limits on what comes in over HTTP: the length of bodies, and how often one address may try to enrol."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from regatta_fleet.api.problems import problem

__all__ = ["BodyLimit", "RateLimit"]


class BodyLimit:
    """Refuses bodies over a limit with 413, whether their length is said or not."""

    def __init__(self, app: ASGIApp, limit_bytes: int, exempt: Callable[[str], bool] = lambda path: False) -> None:
        """
        Args:
            exempt: says for which paths the endpoint itself limits the body.
        """
        self._app = app
        self._limit_bytes = limit_bytes
        self._exempt = exempt

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._exempt(scope["path"]):
            await self._app(scope, receive, send)
            return
        said = dict(scope["headers"]).get(b"content-length", b"0")
        if not said.isdigit() or int(said) > self._limit_bytes:
            await self._refuse(scope, receive, send)
            return
        body = bytearray()
        more = True
        while more:  # bodies under the limit are small: gathered here, they can be refused before any work
            message = await receive()
            if message["type"] != "http.request":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._limit_bytes:
                await self._refuse(scope, receive, send)
                return
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        await self._app(scope, replay, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = problem(413, f"the request is over the limit of {self._limit_bytes} bytes", "send less at once")
        answer.headers["Connection"] = "close"
        await answer(scope, receive, send)


@dataclass
class _Bucket:
    tokens: float
    at_s: float


class RateLimit:
    """Token buckets by key, for one thread. Memory is bounded: keys not seen for longest are forgotten."""

    def __init__(self, burst: float, per_s: float, clock: Callable[[], float], keys: int = 4096) -> None:
        """
        Args:
            burst: so many at once.
            per_s: so many a second in the long run.
            clock: monotonic seconds.
        """
        self._burst = burst
        self._per_s = per_s
        self._clock = clock
        self._keys = keys
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def allow(self, key: str) -> bool:
        """Count one for `key`; False when it is too many."""
        now_s = self._clock()
        bucket = self._buckets.pop(key, None) or _Bucket(self._burst, now_s)
        bucket.tokens = min(self._burst, bucket.tokens + (now_s - bucket.at_s) * self._per_s)
        bucket.at_s = now_s
        self._buckets[key] = bucket
        while len(self._buckets) > self._keys:
            self._buckets.popitem(last=False)
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True
