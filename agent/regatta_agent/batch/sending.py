"""The process that sends one job's output to the fleet: `python -m regatta_agent.batch.sending`, its spec on stdin.

It runs at the lowest priority and says how far it is in lines on standard output. Only a file that a job of the fleet
wrote is sent: the one that `OUTPUT.summary` names as that job's, below the operator's batch_folder, and no link. What
was sent is the fleet's to remember: a kill at any moment costs one piece.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from pathlib import Path
from typing import BinaryIO

from regatta_agent.batch.fleet_job import ended_job, give_way
from regatta_agent.work.results_sender import SendingSaid, SendingSpec
from regatta_protocol.codec import decode, encode
from regatta_protocol.errors import RegattaError, Rejected, Retryable, TooLarge
from regatta_protocol.ids import Digest
from regatta_protocol.parent import die_with_parent
from regatta_protocol.traffic import Amount
from regatta_provisioning.identity import load_identity
from regatta_provisioning.uploading import send_results

__all__ = ["main", "send"]

_MAX_SPEC_BYTES = 65_536
_READ_BYTES = 1024 * 1024


def main() -> int:
    """Send the output that standard input describes; return the exit status."""
    try:
        spec = decode(SendingSpec, sys.stdin.buffer.read(_MAX_SPEC_BYTES + 1), _MAX_SPEC_BYTES)
        die_with_parent(spec.parent)
        give_way()
        send(spec)
    except RegattaError as err:
        sys.stderr.write(f"{err}\n")
        return err.exit_code
    except OSError as err:
        sys.stderr.write(f"the output cannot be read: {err}\n")
        return Retryable.exit_code
    return 0


def send(spec: SendingSpec) -> None:
    """Send the output of a job.

    Raises:
        Rejected: when there is none of this job, or it leads out of the operator's folder, or the fleet refuses it.
        TooLarge: when it is longer than the fleet wants.
        RegattaError, OSError: as `send_results`.
    """
    job, output = spec.wanted.job, spec.folder / spec.wanted.job.output
    if not output.parent.resolve().is_relative_to(spec.folder.resolve()):
        raise Rejected(f"{output} leads out of {spec.folder}: the operator's batch_folder")
    if ended_job(output) != job:
        raise Rejected(f"{output} is not the output of job {job.id} (any more): it was removed or replaced")
    with _opened(output) as file:
        size_bytes = os.fstat(file.fileno()).st_size
        if size_bytes > spec.wanted.max_bytes:
            raise TooLarge(f"{output} has {size_bytes} bytes, over the {spec.wanted.max_bytes} that were asked for")
        digest = _digest_of(file)

        def tell(sent_bytes: int, spent: Amount) -> None:
            said = SendingSaid(
                sent_bytes=sent_bytes, size_bytes=size_bytes, wire_sent=spent.sent, wire_received=spent.received
            )
            sys.stdout.buffer.write(encode(said) + b"\n")
            sys.stdout.buffer.flush()

        send_results(load_identity(spec.identity), job.id, file, size_bytes, digest, tell)


def _opened(path: Path) -> BinaryIO:
    """Return the file, opened for reading.

    Raises:
        Rejected: when it is gone, a link or no file.
    """
    try:
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except OSError as err:
        raise Rejected(f"{path} cannot be opened to be sent: {err.strerror}") from err
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise Rejected(f"{path} is no file")
    return file


def _digest_of(file: BinaryIO) -> Digest:
    digest = hashlib.sha256()
    while piece := file.read(_READ_BYTES):
        digest.update(piece)
    return Digest(digest.hexdigest())


if __name__ == "__main__":
    sys.exit(main())
