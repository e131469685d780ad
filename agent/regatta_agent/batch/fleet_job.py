"""The process of a batch job that the fleet started: `python -m regatta_agent.batch.fleet_job`, its spec on stdin.

It runs job.py at the lowest priority, says how far it is in lines on standard output, and last the summary. It looks
at what links make of the paths, so that nothing outside of the operator's folders is read or written. A job that was
done before its end was heard of is not done again: its summary lies in `OUTPUT.summary`. Where what an earlier start
left is damaged, the job begins anew: its operator is far away.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from regatta_agent.batch.job import Job, Summary, run_job
from regatta_agent.batch.journal import Journal, Settings
from regatta_agent.batch.results import format_of
from regatta_agent.core.batches import refusal
from regatta_agent.work.batch_runner import BatchSaid, BatchSpec
from regatta_protocol.batch import MAX_CLASSES, MAX_LABEL_LENGTH, BatchJob, BatchSummary
from regatta_protocol.codec import decode, encode
from regatta_protocol.durable import make_folder_durably, read_bounded, shortage_of, write_durably
from regatta_protocol.errors import RegattaError, Rejected, StorageFull
from regatta_protocol.parent import die_with_parent
from regatta_protocol.wire import Wire

__all__ = ["ended_job", "give_way", "main", "run_spec"]

_MAX_SPEC_BYTES = 65_536
_LOWEST = 19  # nice(2); the kernel takes the disk's priority from it (ioprio_set(2): an unset one follows nice)
_IN_FLIGHT = 1  # what the application on the board asks for waits behind one stack at the most
_COUNTED_LABELS = 1024  # in memory; a label that is first seen after so many others counts with the others


class _Ended(Wire):
    """What OUTPUT.summary holds."""

    job: BatchJob
    summary: BatchSummary


def main() -> int:
    """Do the job that standard input describes; return the exit status."""
    try:
        spec = decode(BatchSpec, sys.stdin.buffer.read(_MAX_SPEC_BYTES + 1), _MAX_SPEC_BYTES)
        die_with_parent(spec.parent)
        give_way()
        summary = run_spec(spec)
    except RegattaError as err:
        sys.stderr.write(f"{err}\n")
        return err.exit_code
    except OSError as err:
        sys.stderr.write(f"{err}\n")
        full = isinstance(shortage_of(err, "the results"), StorageFull)
        return StorageFull.exit_code if full else RegattaError.exit_code
    _say(BatchSaid(records=summary.records, total=summary.records, summary=summary))
    return 0


def give_way() -> None:
    """Let everything else on the board go first.

    Where the kernel groups sessions (sched(7), autogroup), niceness counts within the session only, and this process
    leads one of its own: the group's niceness is what counts then.
    """
    os.nice(_LOWEST)
    with contextlib.suppress(OSError):  # a kernel without such groups
        Path("/proc/self/autogroup").write_text(str(_LOWEST))


def ended_job(output: Path) -> BatchJob | None:
    """Return the job whose whole output this file is, or None when it is that of none."""
    record = _record_of(output)
    if not output.exists() or not record.exists():
        return None
    return _ended(record).job


def _ended(record: Path) -> _Ended:
    try:
        return decode(_Ended, read_bounded(record, _MAX_SPEC_BYTES), _MAX_SPEC_BYTES)
    except Rejected as err:
        raise Rejected(
            f"{record} is damaged ({err}), so nobody knows whose output is beside it: remove both, or give another name"
        ) from err


def _record_of(output: Path) -> Path:
    return output.with_name(f"{output.name}.summary")


def run_spec(spec: BatchSpec) -> BatchSummary:
    """Do a job, or go on with it, and return its summary; at once when it was done before.

    Raises:
        Rejected: when it is not allowed, or its output is there and is another's.
        RegattaError, OSError: as run_job.
    """
    job = spec.job
    output, inputs = _places(spec)
    record = _record_of(output)
    journal = Journal(output, Settings(model=job.model, inputs=(inputs,), format=format_of(output), top=0))
    if output.exists() and record.exists():
        ended = _ended(record)
        if ended.job == job:
            journal.discard()  # a kill may have come before that
            return ended.summary
        raise Rejected(f"{output} is the output of job {ended.job.id} already: give another name")
    make_folder_durably(output.parent)
    results: list[BatchSummary] = []

    def tell(done: int, total: int | None) -> None:
        free_bytes = shutil.disk_usage(output.parent).free
        if free_bytes < spec.reserve_bytes:
            raise StorageFull(f"{free_bytes} bytes are free at {output.parent}, {spec.reserve_bytes} are kept free")
        _say(BatchSaid(records=done, total=total))

    def conclude(spool: Path, summary: Summary) -> None:
        results.append(_summarized(summary, spool, output))
        write_durably(record, encode(_Ended(job=job, summary=results[0])), mode=0o644)

    work = Job(
        model=job.model,
        name=job.model,
        socket=spec.socket,
        inputs=(inputs,),
        output=output,
        in_flight=_IN_FLIGHT,
        limit=job.limit,
        restart=journal.is_damaged,
    )
    run_job(work, tell, conclude)
    return results[0]


def _places(spec: BatchSpec) -> tuple[Path, str]:
    """Return the output and the input, after what links lead to has been looked at.

    Raises:
        Rejected: when either is not below a folder of the operator's.
    """
    job, folder = spec.job, spec.folder
    why = refusal(job, PurePosixPath(folder), tuple(map(PurePosixPath, spec.inputs)))
    if why is not None:
        raise Rejected(why)
    output = folder / job.output
    if not output.parent.resolve().is_relative_to(folder.resolve()) or output.is_symlink():
        raise Rejected(f"{output} leads out of {folder}: the operator's batch_folder")
    fixed = Path(job.input)
    while glob.has_magic(str(fixed)) and not fixed.exists():  # a pattern: what stands before its first wildcard
        fixed = fixed.parent
    if not any(fixed.resolve().is_relative_to(one.resolve()) for one in spec.inputs):
        raise Rejected(f"{job.input} leads out of the operator's batch_inputs, to {fixed.resolve()}")
    return output, job.input


def _summarized(summary: Summary, spool: Path, output: Path) -> BatchSummary:
    labels: Counter[str] = Counter()
    others, scores, scored = 0, 0.0, 0
    for best in _bests(spool) if output.suffix.lower() != ".npy" else ():
        score = best.get("share", best.get("score"))
        if isinstance(score, int | float):
            scores, scored = scores + score, scored + 1
        label = str(best.get("label", best.get("index")))[:MAX_LABEL_LENGTH]
        if label in labels or len(labels) < _COUNTED_LABELS:
            labels[label] += 1
        else:
            others += 1
    most = dict(labels.most_common(MAX_CLASSES))
    return BatchSummary(
        records=summary.records,
        refused=summary.refused,
        resumed_at=summary.resumed_at,
        seconds=summary.seconds,
        per_second=summary.per_second,
        p50_us=summary.p50_us,
        p90_us=summary.p90_us,
        p99_us=summary.p99_us,
        output_bytes=output.stat().st_size,
        classes=most,
        other_classes=others + labels.total() - sum(most.values()),
        mean_score=scores / scored if scored else None,
    )


def _bests(spool: Path) -> Iterator[dict[str, Any]]:
    """Yield the best class of each record that has one."""
    with spool.open("rb") as lines:
        for line in lines:
            classes = json.loads(line).get("classes")
            if classes:
                yield classes[0]


def _say(said: BatchSaid) -> None:
    sys.stdout.buffer.write(encode(said) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main())
