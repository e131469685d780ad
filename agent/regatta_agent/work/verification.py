"""Verifier children of the agent: the libraries that check signatures are loaded there, and hang or die there.

`Verification` is the conversation with one: a job in, a result out, within a time. `VerifyAssignment` is the job that
asks it about a desired state; authorizing.py asks about a version's metadata.
"""

from __future__ import annotations

from regatta_agent.events import ChildEnded, ChildLine, Event
from regatta_agent.work.children import Child, Launcher
from regatta_agent.work.jobs import AssignmentVerified, Failed, Outcome
from regatta_protocol.codec import decode, encode
from regatta_protocol.durable import shortage_of
from regatta_protocol.errors import Exhausted, RegattaError, Rejected, Retryable
from regatta_protocol.messages import SignedAssignment
from regatta_provisioning.identity import Identity
from regatta_provisioning.verifying import MAX_JOB_BYTES, AssignmentJob, MetadataJob, VerifyResult
from regatta_provisioning.verifying import command as verifier_command

__all__ = ["Verification", "VerifyAssignment"]

_VERIFIER_TIMEOUT_S = 60.0  # 0.2 s on a desktop machine; a slow card under load needs more


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
