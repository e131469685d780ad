"""The verifier's job and result, as a control process sees them: no cryptography and no python-tuf is imported here.

One child process per job (`command()`): the job as JSON on its standard input, the result as JSON on its standard
output, exit status 0 whenever there is a result. python-tuf costs 26 MB and 0.15 s, so it lives no longer than that.

What the agent must do with a metadata result that is ok: persist `versions` in place of the floor that it gave,
durably, before it acts on `targets`. With every result of a metadata job, `root_version` is what to ask the fleet
for next time.
"""

from __future__ import annotations

import sys
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from regatta_protocol.errors import (
    Exhausted,
    Expired,
    Misuse,
    RegattaError,
    Rejected,
    Retryable,
    StorageFull,
    Untrusted,
)
from regatta_protocol.ids import DeviceIdField, DigestField
from regatta_protocol.messages import Assignment, SignedAssignment
from regatta_protocol.wire import Wire

__all__ = [
    "MAX_JOB_BYTES",
    "AssignmentJob",
    "MetadataJob",
    "VerifiedTarget",
    "VerifyJob",
    "VerifyResult",
    "command",
    "parse_job",
    "refusal",
]

MAX_JOB_BYTES = 4 * 1024 * 1024  # twice what an answer of the fleet may inflate to (codec.py)

Family = Literal["expired", "untrusted", "rejected", "storage_full", "exhausted", "retryable", "misuse"]

_ERRORS: dict[str, type[Exception]] = {
    "expired": Expired,
    "untrusted": Untrusted,
    "rejected": Rejected,
    "storage_full": StorageFull,
    "exhausted": Exhausted,
    "retryable": Retryable,
    "misuse": Misuse,
}


class AssignmentJob(Wire):
    """Is this assignment the fleet's, for this device, and not older than what the device has taken up?"""

    kind: Literal["assignment"] = "assignment"
    signed: SignedAssignment
    fleet: str
    device: DeviceIdField
    assignment_key: str
    assignment_key_id: str
    min_generation: int = Field(default=0, ge=0)


class MetadataJob(Wire):
    """What do the fleet's signed metadata promise about these targets?"""

    kind: Literal["metadata"] = "metadata"
    trust_dir: str  # where verified metadata is kept between jobs
    root_path: str  # the root that was pinned at enrolment
    files: dict[str, str] = Field(max_length=64)  # of the fleet's answer: role file name -> exact text
    targets: tuple[str, ...] = Field(min_length=1, max_length=64)
    floor: dict[str, int] = Field(default_factory=dict, max_length=256)  # role -> lowest version to accept
    now: float  # seconds since 1970: the agent's clock, never below the floor of time that it persists


VerifyJob = Annotated[AssignmentJob | MetadataJob, Field(discriminator="kind")]
_JOB: TypeAdapter[AssignmentJob | MetadataJob] = TypeAdapter(VerifyJob)


class VerifiedTarget(Wire):
    """A signed promise about the bytes of a target."""

    length: int = Field(ge=0)
    sha256: DigestField


class VerifyResult(Wire):
    """The answer to one job. `family` and `reason` are set exactly when `ok` is false."""

    ok: bool
    family: Family | None = None
    reason: str | None = None
    assignment: Assignment | None = None
    targets: dict[str, VerifiedTarget] = Field(default_factory=dict)
    versions: dict[str, int] = Field(default_factory=dict)  # the new floor, whole
    root_version: int | None = None

    def require(self) -> VerifyResult:
        """Return the result itself when it is ok.

        Raises:
            Untrusted, Rejected, Retryable, Misuse: as the verifier said.
        """
        if not self.ok:
            raise _ERRORS[self.family or "misuse"](self.reason or "the verifier gave no reason")
        return self


def refusal(err: RegattaError, root_version: int | None = None) -> VerifyResult:
    """Return the result that says `err`; `require` raises its family again on the other side."""
    family: Family = "misuse"
    if isinstance(err, Expired):
        family = "expired"
    elif isinstance(err, Untrusted):
        family = "untrusted"
    elif isinstance(err, Rejected):
        family = "rejected"
    elif isinstance(err, StorageFull):
        family = "storage_full"
    elif isinstance(err, Exhausted):
        family = "exhausted"
    elif isinstance(err, Retryable):
        family = "retryable"
    return VerifyResult(ok=False, family=family, reason=str(err), root_version=root_version)


def command() -> list[str]:
    """Return the argument list that starts a verifier."""
    return [sys.executable, "-m", "regatta_provisioning.verifier"]


def parse_job(data: bytes) -> AssignmentJob | MetadataJob:
    """Return the job in `data`.

    Raises:
        Misuse: when it is over MAX_JOB_BYTES or no job: whoever wrote it is at fault.
    """
    if len(data) > MAX_JOB_BYTES:
        raise Misuse(f"a verifier's job of {len(data)} bytes is over the limit of {MAX_JOB_BYTES}")
    try:
        return _JOB.validate_json(data)
    except ValueError as err:
        raise Misuse(f"this is no verifier's job: {err}") from err
