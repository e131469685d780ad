"""What is going on besides serving: what a job is, and what may come of one.

A job is a small object, a conversation with the broker or with a child process. It is begun once, is shown every event,
and is asked at every turn whether its time is up; it ends by returning an outcome. Cancelling one leaves nothing
running. Jobs decide nothing: what an outcome means is core.outcomes'. They are in authorizing.py, fetcher.py,
checking.py, racing.py and verification.py.
"""

from __future__ import annotations

import logging
from typing import NamedTuple, Protocol

from regatta_agent.events import Event
from regatta_agent.workers import WorkerDeath
from regatta_protocol import topics
from regatta_protocol.bus import Message
from regatta_protocol.codec import decode_zlib
from regatta_protocol.errors import RegattaError, Rejected
from regatta_protocol.ids import DeviceId, Digest
from regatta_protocol.measurement import RaceReport
from regatta_protocol.messages import Assignment, Response, SignedAssignment
from regatta_protocol.policy import Policy

__all__ = [
    "AssignmentVerified",
    "Authorized",
    "Failed",
    "FilesChecked",
    "FilesFetched",
    "Job",
    "ManifestFetched",
    "Outcome",
    "Raced",
    "response_in",
]

logger = logging.getLogger(__name__)


class AssignmentVerified(NamedTuple):
    signed: SignedAssignment
    assignment: Assignment


class Authorized(NamedTuple):
    digest: Digest
    size_bytes: int
    role_versions: dict[str, int]
    root_version: int | None


class ManifestFetched:
    """The manifest is stored."""


class FilesFetched:
    """Every file is stored."""


class FilesChecked(NamedTuple):
    """The files of a version whose worker could not start were read; the damaged ones are gone."""

    death: WorkerDeath


class Raced(NamedTuple):
    report: RaceReport
    bundled: Policy  # the bundle's policy
    assigned: Policy | None = None  # the policy that it was raced by, when it is not the bundle's


class Failed(NamedTuple):
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
