"""Runs a batch job: records in, several requests under way, results in order into the spool, then the output.

Memory holds what is under way and nothing else, however many records there are.
"""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from regatta_agent.batch.checkpoints import Checkpoints
from regatta_agent.batch.journal import Journal, Settings
from regatta_agent.batch.questions import Asker, Question, Sizer, questions
from regatta_agent.batch.results import Results, encode_lines, encode_rows, format_of, write_output
from regatta_agent.client import Client
from regatta_agent.inputs.records import first_of, open_records
from regatta_agent.inputs.wanted import wanted_by
from regatta_protocol import sketch
from regatta_protocol.errors import Misuse, Rejected

__all__ = ["Job", "Summary", "run_job"]

_CHECKPOINT_S = 1.0  # a checkpoint costs three syncs, up to 20 ms each on an SD card that nobody else writes to
_WINDOW = 4  # questions asked or answered and not yet written, for each request under way


@dataclass(frozen=True)
class Job:
    """What is to be done."""

    model: str  # as the user names it; for the journal
    name: str  # of the model, to its worker
    socket: Path
    inputs: tuple[str, ...]
    output: Path
    top: int = 0
    in_flight: int = 3
    patience_s: float = 60.0
    restart: bool = False
    limit: int | None = None  # the first so many records; None: all


@dataclass(frozen=True)
class Summary:
    """What came of a job. `seconds` and the latencies of its requests are this run's."""

    output: str
    records: int
    refused: int
    resumed_at: int
    seconds: float
    p50_us: float | None = None
    p90_us: float | None = None
    p99_us: float | None = None

    @property
    def per_second(self) -> float:
        """Return the records a second of this run."""
        return (self.records - self.resumed_at) / self.seconds if self.seconds > 0 else 0.0


Told = Callable[[int, int | None], None]
Concluded = Callable[[Path, Summary], None]


def run_job(
    job: Job, tell: Told = lambda done, total: None, conclude: Concluded = lambda spool, summary: None
) -> Summary:
    """Do the job, or go on with it where an earlier run was cut off.

    Args:
        job: what is to be done.
        tell: told how many records are done, of how many (None: unknown), about once a second.
        conclude: called with the spool and what came of the job once the output is whole, before the spool goes.

    Raises:
        Rejected: when an input is not there or has changed since the earlier run, or the output is there already.
        Retryable: when the model cannot be asked for longer than the patience; the same job can be run again.
        Misuse: when an extra is not installed, or the output's folder is not there.
        StorageFull, OSError: when results cannot be written.
    """
    settings = Settings(model=job.model, inputs=job.inputs, format=format_of(job.output), top=job.top)
    if not job.output.parent.is_dir():
        raise Misuse(f"{job.output.parent} is no folder: make it first")
    began = time.monotonic()
    journal = Journal(job.output, settings)
    if job.output.exists() and not journal.exists and not job.restart:
        raise Rejected(f"{job.output} is there already: give another name, or --restart to replace it")
    try:
        resumed = journal.open(restart=job.restart)
        latencies = _fill(job, journal, tell)
        journal.checkpoint()
        write_output(journal.spool_path, job.output, journal.progress)
        done = journal.progress
        p50_us, p90_us, p99_us = (sketch.quantile(latencies, q) for q in (0.5, 0.9, 0.99))
        took_s = time.monotonic() - began
        summary = Summary(str(job.output), done.records, done.refused, resumed.records, took_s, p50_us, p90_us, p99_us)
        conclude(journal.spool_path, summary)
        journal.discard()
    finally:
        journal.close()
    return summary


def _fill(job: Job, journal: Journal, tell: Told) -> dict[int, int]:
    """Append the results of all records that the journal does not have; return the sketch of requests' latencies."""
    with Client(job.socket) as client:
        metadata = client.metadata(job.name)
    records = open_records(job.inputs, wanted_by(metadata))
    rest = journal.rest_of(first_of(records.parts, job.limit))
    total = records.total if job.limit is None or records.total is None else min(job.limit, records.total)
    sizer, rows = Sizer(), format_of(job.output) == "npy"
    idle: queue.SimpleQueue[Asker] = queue.SimpleQueue()
    clients = [Client(job.socket) for _ in range(job.in_flight)]
    askers = [Asker(one, job.name, sizer, top=job.top, rows=rows, patience_s=job.patience_s) for one in clients]
    for one in askers:
        idle.put(one)

    def answer(question: Question) -> list[Results]:
        asker = idle.get()
        try:
            return asker.answer(question)
        finally:
            idle.put(asker)

    pool = ThreadPoolExecutor(job.in_flight, thread_name_prefix="batch")
    try:
        with Checkpoints(journal, _CHECKPOINT_S) as checkpoints:
            for results in _in_order(pool, answer, questions(rest, sizer, metadata), _WINDOW * job.in_flight):
                _append(journal, results, rows=rows)
                if checkpoints.go_on():
                    tell(journal.records, total)
            checkpoints.finish()
    finally:
        pool.shutdown(cancel_futures=True)
        for client in clients:
            client.close()
    tell(journal.records, total)
    return sketch.merge(asker.latency_counts for asker in askers)


def _in_order(
    pool: ThreadPoolExecutor,
    answer: Callable[[Question], list[Results]],
    asked: Iterator[Question],
    window: int,
) -> Iterator[list[Results]]:
    """Yield results in the order of the questions, with at most `window` of them in memory."""
    waiting: deque[Future[list[Results]]] = deque()
    for question in asked:
        waiting.append(pool.submit(answer, question))
        if len(waiting) >= window:
            yield waiting.popleft().result()
        while waiting and waiting[0].done():
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _append(journal: Journal, results: list[Results], *, rows: bool) -> None:
    keys = [key for some in results for key in some.keys]
    refused = sum(len(some.keys) for some in results if some.error is not None)
    if not rows:
        journal.append(encode_lines(results), keys, refused)
        return
    shape = journal.row_shape
    if shape is None:
        shape = next((some.rows.shape[1:] for some in results if some.rows is not None), None)
    if shape is None:
        raise Rejected(f"{keys[0]}: {results[0].error}")
    journal.append(encode_rows(results, shape), keys, refused, shape)
