"""The operator API from outside: one method an endpoint, typed answers, errors of the families of errors.py.

The command line, the demo and tests use it. It keeps no state beyond the connection. Rules:
- Every call has a timeout on connecting, on silence and on the whole; every answer a greatest size.
- Calls that change nothing, or that may be repeated (a blob's upload), are tried again with full jitter after a
  broken connection, 502, 503 or 504; others once, because the first may have been carried out.
- No proxy, no .netrc and no redirect: the token goes to the named server only.
"""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import quote

import requests
from pydantic import BaseModel, TypeAdapter, ValidationError

from regatta_fleet.schemas import (
    BatchDetail,
    BatchRequest,
    BundleDraft,
    DeviceDetail,
    DeviceSummary,
    FleetEvent,
    FleetStatus,
    GroupPolicy,
    GroupWindows,
    ModelSummary,
    Problem,
    ResultsRequest,
    RolloutDetail,
    RolloutRequest,
    TokenRequest,
    TokenResponse,
    VersionDetail,
    WindowsRequest,
)
from regatta_protocol.durable import rename_durably
from regatta_protocol.errors import BadDigest, Rejected, Retryable, StorageFull, TooLarge, Untrusted
from regatta_protocol.ids import DeviceId, Digest, ModelName, ModelRef
from regatta_protocol.manifest import FileRef, Manifest
from regatta_protocol.policy import Policy

__all__ = ["FleetClient", "Refused", "Unreachable"]

_CONNECT_TIMEOUT_S = 5.0
# The greatest answer: the status of 10,000 devices of 3 KB each, twice over.
_MAX_ANSWER_BYTES = 64 * 1024 * 1024
_MAX_PROBLEM_BYTES = 64 * 1024
_READ_BYTES = 64 * 1024
_DOWNLOAD_S = 3600.0  # of one output, a gigabyte at the most
_ATTEMPTS = 4
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0
_BUSY = {502, 503, 504}

T = TypeVar("T")


class Unreachable(Retryable):
    """No server answers at the address."""


class Refused(Untrusted):
    """The server does not accept the token."""


class FleetClient(AbstractContextManager["FleetClient"]):
    """A connection to one fleet's operator API."""

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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connection back. May be called twice."""
        self._session.close()

    # The fleet as a whole

    def status(self) -> FleetStatus:
        """Return the whole fleet on one page."""
        return self._get("/api/v1/status", FleetStatus)

    def events(self, since: float | None = None) -> tuple[FleetEvent, ...]:
        """Return the fleet's history, oldest first, from `since` (seconds since 1970) on."""
        query = "" if since is None else f"?since={since!r}"
        return self._get_all(f"/api/v1/events{query}", FleetEvent)

    # Devices

    def create_token(self, request: TokenRequest) -> TokenResponse:
        """Return a new one-time enrolment token."""
        return self._post("/api/v1/tokens", request, TokenResponse)

    def devices(self) -> tuple[DeviceSummary, ...]:
        """Return every device."""
        return self._get_all("/api/v1/devices", DeviceSummary)

    def device(self, device: DeviceId) -> DeviceDetail:
        """Return one device with its races."""
        return self._get(f"/api/v1/devices/{device}", DeviceDetail)

    def revoke(self, device: DeviceId) -> None:
        """Take the device's certificate and place in the fleet away for good."""
        self._call("DELETE", f"/api/v1/devices/{device}")

    # Models

    def models(self) -> tuple[ModelSummary, ...]:
        """Return every model's name, versions and number of serving devices."""
        return self._get_all("/api/v1/models", ModelSummary)

    def model(self, name: ModelName) -> ModelSummary:
        """Return one model."""
        return self._get(f"/api/v1/models/{name}", ModelSummary)

    def version(self, ref: ModelRef) -> VersionDetail:
        """Return a version's manifest and what the devices made of it."""
        return self._get(f"/api/v1/models/{ref.name}/versions/{ref.version}", VersionDetail)

    def create_version(self, name: ModelName, draft: BundleDraft) -> Manifest:
        """Have the server sign and store the bundle, whose files are uploaded, as the next version."""
        return self._post(f"/api/v1/models/{name}/versions", draft, Manifest)

    def has_blob(self, digest: Digest) -> bool:
        """Return whether the server has the whole file already."""
        try:
            self._call("HEAD", f"/api/v1/blobs/{digest}", repeatable=True)
        except _NotFound:
            return False
        return True

    def upload_blob(self, file: FileRef, path: Path, progress: Callable[[int], None] = lambda count: None) -> None:
        """Send the file; `progress` hears of each piece's length.

        Raises:
            Rejected: when the server finds another digest or length.
            StorageFull: when the server's disk is full.
        """
        self._call(
            "PUT",
            f"/api/v1/blobs/{file.digest}",
            body=lambda: _Pieces(path, file.size_bytes, progress),
            content_type="application/octet-stream",
            repeatable=True,
        )

    # Rollouts

    def start_rollout(self, request: RolloutRequest) -> RolloutDetail:
        """Begin sending a version to devices in waves."""
        return self._post("/api/v1/rollouts", request, RolloutDetail)

    def rollouts(self) -> tuple[RolloutDetail, ...]:
        """Return every rollout, in the server's order."""
        return self._get_all("/api/v1/rollouts", RolloutDetail)

    def rollout(self, rollout: str) -> RolloutDetail:
        """Return one rollout with its waves."""
        return self._get(f"/api/v1/rollouts/{_segment(rollout)}", RolloutDetail)

    def abort_rollout(self, rollout: str) -> RolloutDetail:
        """Stop the rollout and bring its devices back to what they ran."""
        return self._post(f"/api/v1/rollouts/{_segment(rollout)}/abort", None, RolloutDetail)

    def promote_rollout(self, rollout: str) -> RolloutDetail:
        """Let the rollout go on with its next wave, whatever the gate said."""
        return self._post(f"/api/v1/rollouts/{_segment(rollout)}/promote", None, RolloutDetail)

    # Policies of groups

    def policies(self) -> tuple[GroupPolicy, ...]:
        """Return what is set for groups of devices."""
        return self._get_all("/api/v1/policies", GroupPolicy)

    def set_policy(self, group: str, model: ModelName | None, policy: Policy) -> GroupPolicy:
        """Set the fields of `policy` that are set, for the group and the model, in place of what was set for both."""
        return self._put(_policy_path(group, model), policy, GroupPolicy)

    def clear_policy(self, group: str, model: ModelName | None) -> None:
        """Take away what is set for the group and the model."""
        self._call("DELETE", _policy_path(group, model))

    # Update windows of groups

    def windows(self) -> tuple[GroupWindows, ...]:
        """Return the update windows that are set for groups of devices."""
        return self._get_all("/api/v1/windows", GroupWindows)

    def set_windows(self, group: str, windows: tuple[str, ...]) -> GroupWindows:
        """Set the group's update windows in place of those before."""
        return self._put(_windows_path(group), WindowsRequest(windows=windows), GroupWindows)

    def clear_windows(self, group: str) -> None:
        """Take the group's update windows away."""
        self._call("DELETE", _windows_path(group))

    # Batch jobs

    def start_batch(self, request: BatchRequest) -> BatchDetail:
        """Have devices answer the records of an input that lies on them."""
        return self._post("/api/v1/batch", request, BatchDetail)

    def batches(self) -> tuple[BatchDetail, ...]:
        """Return the newest batches, newest first."""
        return self._get_all("/api/v1/batch", BatchDetail)

    def batch(self, batch: str) -> BatchDetail:
        """Return one batch, and how it stands on each device."""
        return self._get(f"/api/v1/batch/{_segment(batch)}", BatchDetail)

    def cancel_batch(self, batch: str) -> BatchDetail:
        """End the batch on every device that has not ended it."""
        return self._post(f"/api/v1/batch/{_segment(batch)}/cancel", None, BatchDetail)

    def ask_results(self, batch: str, request: ResultsRequest) -> BatchDetail:
        """Have devices that have done the batch send its outputs to the server; may be repeated."""
        return self._post(f"/api/v1/batch/{_segment(batch)}/results", request, BatchDetail)

    def fetch_output(self, batch: str, device: DeviceId, file: FileRef, destination: Path) -> None:
        """Put the output that a device has sent in its place, once it is here whole.

        Raises:
            BadDigest: when it is not what the server promised.
            OSError: when it cannot be written.
        """
        path = f"/api/v1/batch/{_segment(batch)}/results/{_segment(device)}"
        part = destination.with_name(f".{destination.name}.part")
        digest, deadline = hashlib.sha256(), time.monotonic() + _DOWNLOAD_S
        try:
            with part.open("wb") as out, self._answered("GET", path, None, None, deadline) as answer:
                for piece in answer.iter_content(_READ_BYTES):
                    digest.update(piece)
                    if out.write(piece) and (out.tell() > file.size_bytes or time.monotonic() > deadline):
                        break
                out.flush()
                os.fsync(out.fileno())
            if digest.hexdigest() != file.digest:
                raise BadDigest(f"the output of {batch} on {device} did not arrive whole: do it again")
            rename_durably(part, destination)
        finally:
            part.unlink(missing_ok=True)

    def forget_results(self, batch: str) -> BatchDetail:
        """Remove the outputs of a batch from the server; the devices keep theirs."""
        path = f"/api/v1/batch/{_segment(batch)}/results"
        return _parse(TypeAdapter(BatchDetail), self._call("DELETE", path, repeatable=True), path)

    # Below: one request, its repetition, its errors

    def _get(self, path: str, kind: type[T]) -> T:
        return _parse(TypeAdapter(kind), self._call("GET", path, repeatable=True), path)

    def _get_all(self, path: str, kind: type[T]) -> tuple[T, ...]:
        adapter: TypeAdapter[tuple[T, ...]] = TypeAdapter(tuple[kind, ...])  # type: ignore[valid-type]  # kind is a value here
        return _parse(adapter, self._call("GET", path, repeatable=True), path)

    def _post(self, path: str, body: BaseModel | None, kind: type[T]) -> T:
        data = None if body is None else body.model_dump_json(exclude_none=True).encode()
        answer = self._call("POST", path, body=lambda: data, content_type="application/json")
        return _parse(TypeAdapter(kind), answer, path)

    def _put(self, path: str, body: BaseModel, kind: type[T]) -> T:
        data = body.model_dump_json(exclude_unset=True).encode()
        answer = self._call("PUT", path, body=lambda: data, content_type="application/json", repeatable=True)
        return _parse(TypeAdapter(kind), answer, path)

    def _call(
        self,
        method: str,
        path: str,
        *,
        body: Callable[[], bytes | _Pieces | None] = lambda: None,
        content_type: str | None = None,
        repeatable: bool = False,
    ) -> bytes:
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

    def _once(self, method: str, path: str, body: bytes | _Pieces | None, content_type: str | None) -> bytes:
        deadline = time.monotonic() + self._timeout_s
        with self._answered(method, path, body, content_type, deadline) as answer:
            return _read(answer, _MAX_ANSWER_BYTES, deadline)

    @contextmanager
    def _answered(
        self, method: str, path: str, body: bytes | _Pieces | None, content_type: str | None, deadline: float
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
        except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema) as err:
            raise Rejected(f"{self.url!r} is no server's address: write for example http://127.0.0.1:8090") from err
        except requests.Timeout as err:
            raise Retryable(f"the server at {self.url} did not answer within {self._timeout_s:g} s: try again") from err
        except requests.RequestException as err:
            raise Unreachable(
                f"no Regatta server answers at {self.url} ({_cause(err)}): start it with `regatta up`, "
                "or name another with --url"
            ) from err


class _NotFound(Rejected):
    """404."""


class _Busy(Retryable):
    """502, 503 or 504: a request that may be repeated is."""


class _Pieces:
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
            while left and (piece := file.read(min(_READ_BYTES, left))):
                left -= len(piece)
                yield piece
                self._progress(len(piece))
        if left:
            raise Rejected(f"{self._path} became {left} bytes shorter while it was sent: push again")


def _read(answer: requests.Response, limit_bytes: int, deadline: float) -> bytes:
    data = bytearray()
    for piece in answer.iter_content(_READ_BYTES):
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
        return _NotFound(text)
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


def _policy_path(group: str, model: ModelName | None) -> str:
    return f"/api/v1/policies/{_segment(group)}" + (f"?model={_segment(model)}" if model is not None else "")


def _windows_path(group: str) -> str:
    return f"/api/v1/windows/{_segment(group)}"


def _segment(text: str) -> str:
    """Return `text` quoted as one segment of a path."""
    return quote(text, safe="")
