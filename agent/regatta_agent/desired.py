"""The desired state on its way in: the newest message waits for a verifier; what is not signed is refused.

One verification at a time, the newest message wins. A message that is nonsense, a replay or untrusted changes nothing
but a line in the log and the reason that `regatta-agent status` shows. One that cannot be verified for now is tried
again until it can, or until a newer one has come.
"""

from __future__ import annotations

import logging
from random import Random

from regatta_agent.core.installs import AgentRecord
from regatta_agent.events import Event
from regatta_agent.work.children import Launcher
from regatta_agent.work.jobs import AssignmentVerified, Failed, Outcome
from regatta_agent.work.verification import VerifyAssignment
from regatta_protocol import topics
from regatta_protocol.backoff import backoff_s
from regatta_protocol.bus import Message
from regatta_protocol.codec import decode
from regatta_protocol.errors import RegattaError, Retryable
from regatta_protocol.messages import SignedAssignment
from regatta_provisioning.identity import Identity

__all__ = ["DesiredState"]

logger = logging.getLogger(__name__)

_BACKOFF_BASE_S, _BACKOFF_CAP_S = 1.0, 300.0
_TOLD_AFTER = 6  # tries, about a minute: then `status` shows why it is not taken up


class DesiredState:
    """Takes signed assignments and gives verified ones. Used by the loop's thread only."""

    def __init__(self, launcher: Launcher, identity: Identity, rng: Random, boot: str) -> None:
        self._launcher = launcher
        self._identity = identity
        self._rng = rng
        self._boot = boot
        self._topic = topics.desired(identity.device)
        self._job: VerifyAssignment | None = None
        self._waiting: SignedAssignment | None = None
        self._tries = 0
        self._not_before_s = 0.0
        self._count = 0
        self.refused: str | None = None  # why the last message was not taken up

    def offer(self, message: Message, record: AgentRecord, now_s: float) -> None:
        """Take a message in when it is a desired state, and one that is not known already."""
        if message.topic != self._topic:
            return
        try:
            signed = decode(SignedAssignment, message.payload)
        except RegattaError as err:
            self._refuse(err)
            return
        if record.signed is not None and signed == record.signed:
            self.refused = None  # the fleet says again what was taken up: whatever was refused in between is past
            return
        self._waiting, self._tries, self._not_before_s = signed, 0, now_s
        self.tick(record, now_s)

    def handle(self, event: Event, record: AgentRecord, now_s: float) -> AssignmentVerified | None:
        """Return the assignment when the event brought its verification to an end."""
        if self._job is None:
            return None
        return self._conclude(self._job.handle(event, now_s), record, now_s)

    def tick(self, record: AgentRecord, now_s: float) -> None:
        """Begin the verification that waits, or end one that takes too long."""
        if self._job is not None:
            self._conclude(self._job.tick(now_s), record, now_s)
        if self._job is not None or self._waiting is None or now_s < self._not_before_s:
            return
        signed, self._waiting = self._waiting, None
        self._count += 1
        minimum = record.generation if record.assignment is not None else 0
        name = f"assignment-{self._boot[:8]}-{self._count}"
        self._job = VerifyAssignment(name, self._launcher, self._identity, signed, minimum)
        self._conclude(self._job.begin(now_s), record, now_s)

    def cancel(self) -> None:
        """Leave nothing running."""
        if self._job is not None:
            self._job.cancel()
            self._job = None

    def _conclude(self, outcome: Outcome | None, record: AgentRecord, now_s: float) -> AssignmentVerified | None:
        if outcome is None or self._job is None:
            return None
        job, self._job = self._job, None
        if isinstance(outcome, Failed):
            self._failed(job.signed, outcome.error, now_s)
            return None
        self.refused = None
        self._tries = 0
        if self._waiting is not None:
            self.tick(record, now_s)
        return outcome if isinstance(outcome, AssignmentVerified) else None

    def _failed(self, signed: SignedAssignment, error: RegattaError, now_s: float) -> None:
        if not isinstance(error, Retryable):
            self._refuse(error)
            return
        # A board without memory for a verifier has it later, and the broker says a retained message only once.
        self._tries += 1
        self._not_before_s = now_s + backoff_s(self._tries, _BACKOFF_BASE_S, _BACKOFF_CAP_S, self._rng)
        self._waiting = self._waiting or signed  # a newer one that came meanwhile goes first
        logger.warning("event=assignment_unverified try=%d error=%s", self._tries, error)
        if self._tries >= _TOLD_AFTER:
            self.refused = f"not verified yet: {error}"

    def _refuse(self, error: RegattaError) -> None:
        self.refused = str(error)
        logger.error("event=assignment_refused error=%s", error)
