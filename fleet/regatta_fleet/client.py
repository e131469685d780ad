"""The operator API from outside: one method an endpoint, typed answers, errors of the families of errors.py.

The command line, the demo and tests use it. It keeps no state beyond the connection, whose rules are calling.py's.
"""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

from regatta_fleet.calling import READ_BYTES, Calls, NotFound, Pieces
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
    ResultsRequest,
    RolloutDetail,
    RolloutRequest,
    TokenRequest,
    TokenResponse,
    VersionDetail,
    WindowsRequest,
)
from regatta_protocol.durable import rename_durably
from regatta_protocol.errors import BadDigest
from regatta_protocol.ids import DeviceId, Digest, ModelName, ModelRef
from regatta_protocol.manifest import FileRef, Manifest
from regatta_protocol.policy import Policy

__all__ = ["FleetClient"]

_DOWNLOAD_S = 3600.0  # of one output, a gigabyte at the most


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
        self._calls = Calls(url, token, timeout_s=timeout_s, jitter=jitter, sleep=sleep)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connection back. May be called twice."""
        self._calls.close()

    # The fleet as a whole

    def status(self) -> FleetStatus:
        """Return the whole fleet on one page."""
        return self._calls.get("/api/v1/status", FleetStatus)

    def events(self, since: float | None = None) -> tuple[FleetEvent, ...]:
        """Return the fleet's history, oldest first, from `since` (seconds since 1970) on."""
        query = "" if since is None else f"?since={since!r}"
        return self._calls.get_all(f"/api/v1/events{query}", FleetEvent)

    # Devices

    def create_token(self, request: TokenRequest) -> TokenResponse:
        """Return a new one-time enrolment token."""
        return self._calls.post("/api/v1/tokens", request, TokenResponse)

    def devices(self) -> tuple[DeviceSummary, ...]:
        """Return every device."""
        return self._calls.get_all("/api/v1/devices", DeviceSummary)

    def device(self, device: DeviceId) -> DeviceDetail:
        """Return one device with its races."""
        return self._calls.get(f"/api/v1/devices/{device}", DeviceDetail)

    def revoke(self, device: DeviceId) -> None:
        """Take the device's certificate and place in the fleet away for good."""
        self._calls.call("DELETE", f"/api/v1/devices/{device}")

    # Models

    def models(self) -> tuple[ModelSummary, ...]:
        """Return every model's name, versions and number of serving devices."""
        return self._calls.get_all("/api/v1/models", ModelSummary)

    def model(self, name: ModelName) -> ModelSummary:
        """Return one model."""
        return self._calls.get(f"/api/v1/models/{name}", ModelSummary)

    def version(self, ref: ModelRef) -> VersionDetail:
        """Return a version's manifest and what the devices made of it."""
        return self._calls.get(f"/api/v1/models/{ref.name}/versions/{ref.version}", VersionDetail)

    def create_version(self, name: ModelName, draft: BundleDraft) -> Manifest:
        """Have the server sign and store the bundle, whose files are uploaded, as the next version."""
        return self._calls.post(f"/api/v1/models/{name}/versions", draft, Manifest)

    def has_blob(self, digest: Digest) -> bool:
        """Return whether the server has the whole file already."""
        try:
            self._calls.call("HEAD", f"/api/v1/blobs/{digest}", repeatable=True)
        except NotFound:
            return False
        return True

    def upload_blob(self, file: FileRef, path: Path, progress: Callable[[int], None] = lambda count: None) -> None:
        """Send the file; `progress` hears of each piece's length.

        Raises:
            Rejected: when the server finds another digest or length.
            StorageFull: when the server's disk is full.
        """
        self._calls.call(
            "PUT",
            f"/api/v1/blobs/{file.digest}",
            body=lambda: Pieces(path, file.size_bytes, progress),
            content_type="application/octet-stream",
            repeatable=True,
        )

    # Rollouts

    def start_rollout(self, request: RolloutRequest) -> RolloutDetail:
        """Begin sending a version to devices in waves."""
        return self._calls.post("/api/v1/rollouts", request, RolloutDetail)

    def rollouts(self) -> tuple[RolloutDetail, ...]:
        """Return every rollout, in the server's order."""
        return self._calls.get_all("/api/v1/rollouts", RolloutDetail)

    def rollout(self, rollout: str) -> RolloutDetail:
        """Return one rollout with its waves."""
        return self._calls.get(f"/api/v1/rollouts/{_segment(rollout)}", RolloutDetail)

    def abort_rollout(self, rollout: str) -> RolloutDetail:
        """Stop the rollout and bring its devices back to what they ran."""
        return self._calls.post(f"/api/v1/rollouts/{_segment(rollout)}/abort", None, RolloutDetail)

    def promote_rollout(self, rollout: str) -> RolloutDetail:
        """Let the rollout go on with its next wave, whatever the gate said."""
        return self._calls.post(f"/api/v1/rollouts/{_segment(rollout)}/promote", None, RolloutDetail)

    # Policies of groups

    def policies(self) -> tuple[GroupPolicy, ...]:
        """Return what is set for groups of devices."""
        return self._calls.get_all("/api/v1/policies", GroupPolicy)

    def set_policy(self, group: str, model: ModelName | None, policy: Policy) -> GroupPolicy:
        """Set the fields of `policy` that are set, for the group and the model, in place of what was set for both."""
        return self._calls.put(_policy_path(group, model), policy, GroupPolicy)

    def clear_policy(self, group: str, model: ModelName | None) -> None:
        """Take away what is set for the group and the model."""
        self._calls.call("DELETE", _policy_path(group, model))

    # Update windows of groups

    def windows(self) -> tuple[GroupWindows, ...]:
        """Return the update windows that are set for groups of devices."""
        return self._calls.get_all("/api/v1/windows", GroupWindows)

    def set_windows(self, group: str, windows: tuple[str, ...]) -> GroupWindows:
        """Set the group's update windows in place of those before."""
        return self._calls.put(_windows_path(group), WindowsRequest(windows=windows), GroupWindows)

    def clear_windows(self, group: str) -> None:
        """Take the group's update windows away."""
        self._calls.call("DELETE", _windows_path(group))

    # Batch jobs

    def start_batch(self, request: BatchRequest) -> BatchDetail:
        """Have devices answer the records of an input that lies on them."""
        return self._calls.post("/api/v1/batch", request, BatchDetail)

    def batches(self) -> tuple[BatchDetail, ...]:
        """Return the newest batches, newest first."""
        return self._calls.get_all("/api/v1/batch", BatchDetail)

    def batch(self, batch: str) -> BatchDetail:
        """Return one batch, and how it stands on each device."""
        return self._calls.get(f"/api/v1/batch/{_segment(batch)}", BatchDetail)

    def cancel_batch(self, batch: str) -> BatchDetail:
        """End the batch on every device that has not ended it."""
        return self._calls.post(f"/api/v1/batch/{_segment(batch)}/cancel", None, BatchDetail)

    def ask_results(self, batch: str, request: ResultsRequest) -> BatchDetail:
        """Have devices that have done the batch send its outputs to the server; may be repeated."""
        return self._calls.post(f"/api/v1/batch/{_segment(batch)}/results", request, BatchDetail)

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
            with part.open("wb") as out, self._calls.answered("GET", path, None, None, deadline) as answer:
                for piece in answer.iter_content(READ_BYTES):
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
        return self._calls.delete(path, BatchDetail)


def _policy_path(group: str, model: ModelName | None) -> str:
    return f"/api/v1/policies/{_segment(group)}" + (f"?model={_segment(model)}" if model is not None else "")


def _windows_path(group: str) -> str:
    return f"/api/v1/windows/{_segment(group)}"


def _segment(text: str) -> str:
    """Return `text` quoted as one segment of a path."""
    return quote(text, safe="")
