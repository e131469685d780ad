"""Asking the fleet for the signed metadata of a version, and letting a verifier say what its manifest's digest is.

The board's clock matters here: a certificate or signature that counts as expired may only be one of a board whose
clock is not set, which is told apart by the time that the fleet's answer carries.
"""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

from regatta_agent.errors import NotSent, Unanswered, WrongClock
from regatta_agent.events import Event
from regatta_agent.work.children import Launcher
from regatta_agent.work.jobs import Authorized, Failed, Outcome, response_in
from regatta_agent.work.verification import Verification
from regatta_protocol import topics
from regatta_protocol.bus import Bus
from regatta_protocol.codec import encode
from regatta_protocol.errors import Expired, RegattaError, Rejected, Retryable
from regatta_protocol.ids import Digest, ModelRef
from regatta_protocol.manifest import MAX_MANIFEST_BYTES, target_path
from regatta_protocol.messages import Request
from regatta_provisioning.identity import Identity
from regatta_provisioning.verifying import MetadataJob, VerifyResult

__all__ = ["Authorize", "TrustFloor"]

_ANSWER_TIMEOUT_S = 30.0  # a cellular link needs seconds; a lost request is asked again after that
_CLOCK_TOLERANCE_S = 600.0  # what a board's clock may be off before it, and not the fleet, is why metadata are expired


class TrustFloor(NamedTuple):
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
