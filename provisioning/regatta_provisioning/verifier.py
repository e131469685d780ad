"""Checks what the fleet signed, on the device, as a short-lived child process (verifying.py is its front).

Assignments: assignments.py, and the generation never goes back. Metadata: metadata.py, which is imported only for
its own jobs.
"""

from __future__ import annotations

import logging
import sys

from regatta_protocol.errors import RegattaError, Untrusted
from regatta_provisioning.assignments import verify_assignment
from regatta_provisioning.verifying import (
    MAX_JOB_BYTES,
    AssignmentJob,
    MetadataJob,
    VerifyResult,
    parse_job,
    refusal,
)

__all__ = ["main", "verify"]

logger = logging.getLogger(__name__)


def verify(job: AssignmentJob | MetadataJob) -> VerifyResult:
    """Return the answer to the job; what Regatta refuses on purpose is an answer too, and never raises."""
    try:
        if isinstance(job, AssignmentJob):
            return _verify_assignment(job)
        from regatta_provisioning.metadata import verify_metadata  # python-tuf, three times the start of an assignment

        return verify_metadata(job)
    except RegattaError as err:
        return refusal(err)


def _verify_assignment(job: AssignmentJob) -> VerifyResult:
    assignment = verify_assignment(job.signed, job.assignment_key, job.assignment_key_id, job.fleet, job.device)
    if assignment.generation < job.min_generation:
        raise Untrusted(
            f"the assignment has generation {assignment.generation}, but this device has taken up "
            f"{job.min_generation}: an old one was sent again"
        )
    return VerifyResult(ok=True, assignment=assignment)


def main() -> int:
    """Read one job from standard input, write its result to standard output, return the exit status."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")
    try:
        result = verify(parse_job(sys.stdin.buffer.read(MAX_JOB_BYTES + 1)))
    except RegattaError as err:
        result = refusal(err)
    except Exception:
        logger.exception("event=verifier_failed")
        return 1
    sys.stdout.write(result.model_dump_json(exclude_none=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
