"""One call to a fleet's server over HTTP: bounded, repeated where that is safe, and its errors as those of errors.py.

Rules:
- Every call has a timeout on connecting, on silence and on the whole; every answer a greatest size.
- Calls that change nothing, or that may be repeated (a blob's upload), are tried again with full jitter after a
  broken connection, 502, 503 or 504; others once, because the first may have been carried out.
- No proxy, no .netrc and no redirect: the token goes to the named server only.

Not here: which endpoints there are (client.py).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import requests
from pydantic import BaseModel, TypeAdapter, ValidationError

from regatta_fleet.schemas import Problem
from regatta_protocol.errors import Rejected, Retryable, StorageFull, TooLarge, Untrusted

__all__ = ["READ_BYTES", "Calls", "NotFound", "Pieces", "Refused", "Unreachable"]

READ_BYTES = 64 * 1024

_CONNECT_TIMEOUT_S = 5.0
# The greatest answer: the status of 10,000 devices of 3 KB each, twice over.
_MAX_ANSWER_BYTES = 64 * 1024 * 1024
_MAX_PROBLEM_BYTES = 64 * 1024
_ATTEMPTS = 4
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0
_BUSY = {502, 503, 504}

T = TypeVar("T")


class Unreachable(Retryable):
    """No server answers at the address."""


class Refused(Untrusted):
    """The server does not accept the token."""


class NotFound(Rejected):
    """404."""


class _Busy(Retryable):
    """502, 503 or 504: a request that may be repeated is."""


class Pieces:
    """A file as a request's body: its length is known, its pieces are counted, and no more than it is sent."""

    def __init__(self, path: Path, size_bytes: int, progress: Callable[[int], None]) -> None:
        self._path = path
        self._size_bytes = size_bytes
        self._progress = progress

    def __len__(self) -> int:
        return self._size_bytes

    def __iter__(self) -> Iterator[bytes]:
        left = self._size_bytes
        with self._path.open("rb") as file:
            while left and (piece := file.read(min(READ_BYTES, left))):
                left -= len(piece)
                yield piece
                self._progress(len(piece))
        if left:
            raise Rejected(f"{self._path} became {left} bytes shorter while it was sent: push again")


class Calls:
    """A connection to one server."""

    def __init__(
        self,
        url: str,
        token: str,
        *,
        timeout_s: float = 30.0,
        jitter: Callable[[], float] = random.random,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._jitter = jitter
        self._sleep = sleep
        self._session = requests.Session()
        self._session.trust_env = False  # else .netrc replaces the token and a proxy sees it
        self._session.headers["Authorization"] = f"Bearer {token}"

    def close(self) -> None:
        """Give the connection back. May be called twice."""
        self._session.close()

    def get(self, path: str, kind: type[T]) -> T:
        """Return what is there."""
        return _parse(TypeAdapter(kind), self.call("GET", path, repeatable=True), path)

    def get_all(self, path: str, kind: type[T]) -> tuple[T, ...]:
        """Return all that are there."""
        adapter: TypeAdapter[tuple[T, ...]] = TypeAdapter(tuple[kind, ...])  # type: ignore[valid-type]  # kind is a value here
        return _parse(adapter, self.call("GET", path, repeatable=True), path)

    def post(self, path: str, body: BaseModel | None, kind: type[T]) -> T:
        """Have something made or done, once."""
        data = None if body is None else body.model_dump_json(exclude_none=True).encode()
        answer = self.call("POST", path, body=lambda: data, content_type="application/json")
        return _parse(TypeAdapter(kind), answer, path)

    def put(self, path: str, body: BaseModel, kind: type[T]) -> T:
        """Put the fields that are set in place of what is there."""
        data = body.model_dump_json(exclude_unset=True).encode()
        answer = self.call("PUT", path, body=lambda: data, content_type="application/json", repeatable=True)
        return _parse(TypeAdapter(kind), answer, path)

    def delete(self, path: str, kind: type[T]) -> T:
        """Take something away, as often as is asked, and return what is left of it."""
        return _parse(TypeAdapter(kind), self.call("DELETE", path, repeatable=True), path)

    def call(
        self,
        method: str,
        path: str,
        *,
        body: Callable[[], bytes | Pieces | None] = lambda: None,
        content_type: str | None = None,
        repeatable: bool = False,
    ) -> bytes:
        """Return the body of a good answer.

        Raises:
            Unreachable: when no server answers; Refused when it does not take the token.
            Rejected, Retryable: as the server says.
        """
        attempts = _ATTEMPTS if repeatable else 1
        for attempt in range(attempts):
            try:
                return self._once(method, path, body(), content_type)
            except (Unreachable, _Busy):
                if attempt + 1 == attempts:
                    raise
                pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**attempt)
                self._sleep(pause_s * self._jitter())
        raise AssertionError("the last attempt returns or raises")

    @contextmanager
    def answered(
        self, method: str, path: str, body: bytes | Pieces | None, content_type: str | None, deadline: float
    ) -> Iterator[requests.Response]:
        """Yield a good answer, its body not read yet; raise what any other comes to."""
        try:
            with self._session.request(
                method,
                self.url + path,
                data=body,
                headers={"Content-Type": content_type} if content_type and body is not None else None,
                timeout=(_CONNECT_TIMEOUT_S, self._timeout_s),
                stream=True,
                allow_redirects=False,
            ) as answer:
                if not 200 <= answer.status_code < 300:
                    data = _read(answer, _MAX_PROBLEM_BYTES, deadline)
                    raise _problem(answer.status_code, data, method, self.url + path)
                yield answer
        except (
            requests.exceptions.InvalidURL,
            requests.exceptions.InvalidSchema,
            requests.exceptions.MissingSchema,
        ) as err:
            raise Rejected(f"{self.url!r} is no server's address: write for example http://127.0.0.1:8090") from err
        except requests.Timeout as err:
            raise Retryable(f"the server at {self.url} did not answer within {self._timeout_s:g} s: try again") from err
        except requests.RequestException as err:
            raise Unreachable(
                f"no Regatta server answers at {self.url} ({_cause(err)}): start it with `regatta up`, "
                "or name another with --url"
            ) from err

    def _once(self, method: str, path: str, body: bytes | Pieces | None, content_type: str | None) -> bytes:
        deadline = time.monotonic() + self._timeout_s
        with self.answered(method, path, body, content_type, deadline) as answer:
            return _read(answer, _MAX_ANSWER_BYTES, deadline)


def _read(answer: requests.Response, limit_bytes: int, deadline: float) -> bytes:
    data = bytearray()
    for piece in answer.iter_content(READ_BYTES):
        data += piece
        if len(data) > limit_bytes:
            raise TooLarge(f"the server's answer is over {limit_bytes} bytes: is this a Regatta server?")
        if time.monotonic() > deadline:
            raise Retryable("the server's answer came too slowly: try again")
    return bytes(data)


def _parse(adapter: TypeAdapter[T], data: bytes, path: str) -> T:
    try:
        return adapter.validate_json(data)
    except ValidationError as err:
        first = err.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole answer"
        raise Rejected(
            f"the answer to {path} is not understood ({where}: {first['msg']}): "
            "is this a Regatta server of this version?"
        ) from err


def _problem(status: int, data: bytes, method: str, url: str) -> Exception:
    try:
        problem = Problem.model_validate_json(data)
        text = problem.error if problem.hint is None else f"{problem.error.rstrip('.')}: {problem.hint}"
    except ValidationError:
        text = f"{method} {url} was answered with status {status}"
    if status in (401, 403):
        return Refused(
            f"the server refuses the token ({text}): commands on the server's machine find the right one by "
            "themselves; elsewhere give the one of server.json in REGATTA_TOKEN"
        )
    if status == 404:
        return NotFound(text)
    if status == 413:
        return TooLarge(text)
    if status == 507:
        return StorageFull(text)
    if status in _BUSY:
        return _Busy(f"{text}: try again")
    if status == 429 or status >= 500:
        return Retryable(text)
    return Rejected(text)


def _cause(err: BaseException) -> str:
    """Return the operating system's words in a chain of wrapped errors, or the error's kind."""
    seen: Any = err
    for _ in range(8):
        if isinstance(seen, OSError) and seen.strerror and not isinstance(seen, requests.RequestException):
            return str(seen.strerror)
        reason = getattr(seen, "reason", None)
        inner = (
            reason
            if isinstance(reason, BaseException)
            else next((part for part in getattr(seen, "args", ()) if isinstance(part, BaseException)), None)
        )
        inner = inner or seen.__cause__ or seen.__context__
        if inner is None or inner is seen:
            break
        seen = inner
    return type(err).__name__
