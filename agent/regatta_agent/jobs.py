"""What is going on besides serving: small objects, each a conversation with the broker or with a child process.

A job is begun once, is shown every event, and is asked at every turn whether its time is up; it ends by returning
an outcome. Cancelling one leaves nothing running. Jobs decide nothing: what an outcome means is core.outcomes'.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Protocol

from regatta_agent.children import Child, Launcher
from regatta_agent.errors import NotSent, Unanswered, WrongClock
from regatta_agent.events import ChildEnded, ChildLine, Event
from regatta_agent.workers import WorkerDeath
from regatta_protocol import topics
from regatta_protocol.bus import Bus, Message
from regatta_protocol.codec import decode, decode_zlib, encode
from regatta_protocol.durable import shortage_of
from regatta_protocol.errors import Exhausted, Expired, RegattaError, Rejected, Retryable
from regatta_protocol.ids import DeviceId, Digest, ModelRef
from regatta_protocol.manifest import MAX_MANIFEST_BYTES, target_path
from regatta_protocol.measurement import RaceReport
from regatta_protocol.messages import Assignment, Request, Response, SignedAssignment
from regatta_protocol.policy import Policy
from regatta_provisioning.identity import Identity
from regatta_provisioning.verifying import (
    MAX_JOB_BYTES,
    AssignmentJob,
    MetadataJob,
    VerifyResult,
)
from regatta_provisioning.verifying import command as verifier_command

__all__ = [
    "AssignmentVerified",
    "Authorize",
    "Authorized",
    "Failed",
    "FilesChecked",
    "FilesFetched",
    "Job",
    "ManifestFetched",
    "Outcome",
    "Raced",
    "VerifyAssignment",
]

logger = logging.getLogger(__name__)

_ANSWER_TIMEOUT_S = 30.0  # a cellular link needs seconds; a lost request is asked again after that
_CLOCK_TOLERANCE_S = 600.0  # what a board's clock may be off before it, and not the fleet, is why metadata are expired
_VERIFIER_TIMEOUT_S = 60.0  # 0.2 s on a desktop machine; a slow card under load needs more


@dataclass(frozen=True)
class AssignmentVerified:
    signed: SignedAssignment
    assignment: Assignment


@dataclass(frozen=True)
class Authorized:
    digest: Digest
    size_bytes: int
    role_versions: dict[str, int]
    root_version: int | None


@dataclass(frozen=True)
class ManifestFetched:
    """The manifest is stored."""


@dataclass(frozen=True)
class FilesFetched:
    """Every file is stored."""


@dataclass(frozen=True)
class FilesChecked:
    """The files of a version whose worker could not start were read; the damaged ones are gone."""

    death: WorkerDeath


@dataclass(frozen=True)
class Raced:
    report: RaceReport
    bundled: Policy  # the bundle's policy
    assigned: Policy | None = None  # the policy that it was raced by, when it is not the bundle's


@dataclass(frozen=True)
class Failed:
    error: RegattaError
    root_version: int | None = None


Outcome = AssignmentVerified | Authorized | ManifestFetched | FilesFetched | FilesChecked | Raced | Failed


class Job(Protocol):
    """Something under way."""

    def begin(self, now_s: float) -> Outcome | None:
        """Start; `now_s` is monotonic here and below."""

    def handle(self, event: Event, now_s: float) -> Outcome | None:
        """Take note of an event; most are none of the job's business."""

    def tick(self, now_s: float) -> Outcome | None:
        """Do what is due."""

    def cancel(self) -> None:
        """Leave nothing running. May be called at any time."""


class Verification:
    """One verifier child: a job in, a result out."""

    def __init__(self, name: str, launcher: Launcher, job: AssignmentJob | MetadataJob) -> None:
        self._name = name
        self._launcher = launcher
        self._job = job
        self._child: Child | None = None
        self._deadline_s = 0.0
        self._lines: list[bytes] = []

    def begin(self, now_s: float) -> None:
        """Start the child.

        Raises:
            Retryable: when it cannot be started.
            TooLarge: when the job is over the verifier's limit.
        """
        self._deadline_s = now_s + _VERIFIER_TIMEOUT_S
        try:
            self._child = self._launcher.launch(self._name, verifier_command(), encode(self._job, MAX_JOB_BYTES))
        except OSError as err:
            raise shortage_of(err, "the verifier") or Retryable(f"the verifier cannot be started: {err}") from err

    def handle(self, event: Event) -> VerifyResult | None:
        """Return the result when it is there.

        Raises:
            Retryable: when the child ended without one; Exhausted when the board had no room for it.
        """
        if isinstance(event, ChildLine) and event.child == self._name and len(self._lines) < 2:
            self._lines.append(event.line)
        if not isinstance(event, ChildEnded) or event.child != self._name:
            return None
        if event.status != 0 or not self._lines:
            kind = Exhausted if event.lack else Retryable
            raise kind(f"the verifier gave no result: {event.describe()}")
        try:
            return decode(VerifyResult, self._lines[0], MAX_JOB_BYTES)
        except Rejected as err:
            raise Retryable(f"the verifier's result is unreadable: {err}") from err

    def tick(self, now_s: float) -> None:
        """Raise Retryable when the child takes too long."""
        if now_s > self._deadline_s:
            self.cancel()
            raise Retryable(f"the verifier took over {_VERIFIER_TIMEOUT_S:g} s and was ended")

    def cancel(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.kill()


class VerifyAssignment:
    """Is this desired state signed by the fleet, for this device?"""

    def __init__(
        self, name: str, launcher: Launcher, identity: Identity, signed: SignedAssignment, min_generation: int
    ) -> None:
        self.signed = signed
        job = AssignmentJob(
            signed=signed,
            fleet=identity.fleet,
            device=identity.device,
            assignment_key=identity.assignment_key,
            assignment_key_id=identity.assignment_key_id,
            min_generation=min_generation,
        )
        self._verification = Verification(name, launcher, job)

    def begin(self, now_s: float) -> Outcome | None:
        try:
            self._verification.begin(now_s)
        except RegattaError as err:
            return Failed(err)
        return None

    def handle(self, event: Event, now_s: float) -> Outcome | None:
        try:
            result = self._verification.handle(event)
            if result is None:
                return None
            assignment = result.require().assignment
            if assignment is None:
                raise Retryable("the verifier's result holds no assignment")
        except RegattaError as err:
            return Failed(err)
        return AssignmentVerified(self.signed, assignment)

    def tick(self, now_s: float) -> Outcome | None:
        try:
            self._verification.tick(now_s)
        except Retryable as err:
            return Failed(err)
        return None

    def cancel(self) -> None:
        self._verification.cancel()


@dataclass(frozen=True)
class TrustFloor:
    """What the device will not go below."""

    role_versions: dict[str, int]
    root_version: int
    now_s: float  # seconds since 1970, never below the record's floor


class Authorize:
    """Ask the fleet for the signed metadata of a version, and let a verifier say what its manifest's digest is."""

    def __init__(
        self,
        name: str,
        ref: ModelRef,
        bus: Bus,
        launcher: Launcher,
        identity: Identity,
        trust_dir: Path,
        floor: TrustFloor,
    ) -> None:
        self._name = name
        self._target = target_path(ref)
        self._bus = bus
        self._launcher = launcher
        self._identity = identity
        self._trust_dir = trust_dir
        self._floor = floor
        self._deadline_s = 0.0
        self._fleet_says_s: float | None = None  # the time, when it answered
        self._verification: Verification | None = None

    def begin(self, now_s: float) -> Outcome | None:
        self._deadline_s = now_s + _ANSWER_TIMEOUT_S
        request = Request(
            id=self._name,
            method="metadata",
            params={"target": self._target, "root_version": self._floor.root_version},
        )
        try:
            self._bus.publish(topics.up(self._identity.device, topics.Up.REQUEST), encode(request))
        except Retryable as err:
            return Failed(NotSent(str(err)))
        except RegattaError as err:
            return Failed(err)
        return None

    def handle(self, event: Event, now_s: float) -> Outcome | None:
        try:
            if self._verification is None:
                self._take_answer(event, now_s)
                return None
            result = self._verification.handle(event)
            if result is None:
                return None
            return self._conclude(result)
        except RegattaError as err:
            return Failed(err)

    def tick(self, now_s: float) -> Outcome | None:
        try:
            if self._verification is not None:
                self._verification.tick(now_s)
        except Retryable as err:
            return Failed(err)
        if self._verification is None and now_s > self._deadline_s:
            return Failed(Unanswered(f"no answer about the signed metadata within {_ANSWER_TIMEOUT_S:g} s"))
        return None

    def cancel(self) -> None:
        if self._verification is not None:
            self._verification.cancel()

    def _take_answer(self, event: Event, now_s: float) -> None:
        answer = response_in(event, self._identity.device, self._name)
        if answer is None:
            return
        if answer.files is None:
            kind = Retryable if answer.retryable else Rejected
            raise kind(f"the fleet gave no signed metadata: {answer.error or 'no reason given'}")
        self._fleet_says_s = answer.at
        job = MetadataJob(
            trust_dir=str(self._trust_dir),
            root_path=str(self._identity.root_path),
            files=answer.files,
            targets=(self._target,),
            floor=self._floor.role_versions,
            now=self._floor.now_s,
        )
        self._verification = Verification(f"verify-{self._name}", self._launcher, job)
        self._verification.begin(now_s)

    def _conclude(self, result: VerifyResult) -> Outcome:
        try:
            target = result.require().targets.get(self._target)
        except Expired as err:
            return Failed(self._wrong_clock() or err, result.root_version)
        except RegattaError as err:
            return Failed(err, result.root_version)
        if target is None:
            return Failed(Retryable(f"the verifier said nothing about {self._target}"), result.root_version)
        if target.length > MAX_MANIFEST_BYTES:
            error = Rejected(f"the manifest has {target.length} bytes, over the limit of {MAX_MANIFEST_BYTES}")
            return Failed(error, result.root_version)
        return Authorized(Digest(target.sha256), target.length, result.versions, result.root_version)

    def _wrong_clock(self) -> WrongClock | None:
        """Return what is wrong when the fleet's clock is far from the one that found its metadata expired."""
        here_s, there_s = self._floor.now_s, self._fleet_says_s
        if there_s is None or abs(here_s - there_s) <= _CLOCK_TOLERANCE_S:
            return None
        return WrongClock(
            f"clock not set: it is {_moment(here_s)} on this board and {_moment(there_s)} at the fleet, so what the "
            "fleet signed counts as expired; it goes on when the clock is right"
        )


def _moment(at_s: float) -> str:
    try:
        return f"{datetime.fromtimestamp(at_s, timezone.utc):%Y-%m-%d %H:%M} UTC"
    except (OverflowError, ValueError, OSError):
        return f"second {at_s:.0f}"


def response_in(event: Event, device: DeviceId, request: str) -> Response | None:
    """Return the answer to `request` when the event is that; a message that is none is logged and ignored."""
    if not isinstance(event, Message) or event.topic != topics.response(device):
        return None
    try:
        answer = decode_zlib(Response, event.payload)
    except Rejected as err:
        logger.warning("event=response_unreadable error=%s", err)
        return None
    return answer if answer.id == request else None
