"""Batch jobs that the fleet starts on a device: what is asked in an assignment, and what the device tells of each.

A job is named by its id for good. The device does an assigned job once; it tells of a job that has ended until the
fleet's next assignment no longer asks for it. A summary of bounded size travels by itself; the results do when an
assignment asks for them, too.
"""

from __future__ import annotations

from pydantic import Field

from regatta_protocol.enums import OpenStrEnum
from regatta_protocol.ids import ModelNameField
from regatta_protocol.wire import Wire

__all__ = [
    "MAX_BATCH_JOBS",
    "MAX_CLASSES",
    "MAX_LABEL_LENGTH",
    "MAX_RESULTS_WANTED",
    "BatchJob",
    "BatchReport",
    "BatchState",
    "BatchSummary",
    "ResultsReport",
    "ResultsState",
    "ResultsWanted",
]

MAX_BATCH_JOBS = 8  # assigned at a time; with as many that were just cancelled, their reports take 24 KB at the most
MAX_RESULTS_WANTED = 8  # at a time, for each device; with eight jobs that have not ended, 16 KB of an assignment
MAX_CLASSES = 10
MAX_LABEL_LENGTH = 64


class BatchState(OpenStrEnum):
    """Where a job stands; the agent's table of transitions is over these."""

    QUEUED = "queued"  # the reason says what it waits for
    RUNNING = "running"
    DONE = "done"  # the output is whole
    FAILED = "failed"  # refused here, or out of attempts; the reason says why
    CANCELLED = "cancelled"  # no longer asked for before it had ended


class BatchJob(Wire):
    """A model's answers to the records of one input, to be written to a file on the device."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")
    model: ModelNameField  # the version that serves when a record is asked
    input: str = Field(min_length=1, max_length=512)  # a folder, file or pattern: absolute, below one of batch_inputs
    output: str = Field(min_length=1, max_length=255)  # a file below batch_folder; its ending is the format
    limit: int | None = Field(default=None, ge=1)  # the first so many records; None: all


class BatchSummary(Wire):
    """What came of a finished job.

    `seconds`, `per_second` and the latencies are of the run that finished it, which did the records from `resumed_at`
    on. A latency is that of one request, which holds one record or a stack of them.
    """

    records: int = Field(ge=0)
    refused: int = Field(ge=0)  # of them; each has its error in the output
    resumed_at: int = Field(default=0, ge=0)
    seconds: float = Field(ge=0)
    per_second: float = Field(ge=0)
    p50_us: float | None = None
    p90_us: float | None = None
    p99_us: float | None = None
    output_bytes: int = Field(default=0, ge=0)
    classes: dict[str, int] = Field(default_factory=dict, max_length=MAX_CLASSES)  # best label -> records, most first
    other_classes: int = Field(default=0, ge=0)  # records whose best label is none of these
    mean_score: float | None = None  # of the best class of each record; None: no record had one


class BatchReport(Wire):
    """How one job stands on a device."""

    id: str = Field(max_length=64)
    state: BatchState
    reason: str | None = None
    attempt: int = Field(default=0, ge=0)  # starts in a row without a record more
    records: int = Field(default=0, ge=0)  # done so far, told about once a minute
    total: int | None = None  # None: not known beforehand
    summary: BatchSummary | None = None  # once it is done


class ResultsWanted(Wire):
    """The output of a finished job, to be sent to the fleet's server (regatta_provisioning.uploading)."""

    job: BatchJob
    max_bytes: int = Field(ge=1)  # a longer output is refused
    asked: int = Field(default=0, ge=0)  # the generation that asked first: a later one is another order


class ResultsState(OpenStrEnum):
    """Where the pulling of one output from one device stands."""

    WANTED = "wanted"  # the reason says what it waits for
    SENDING = "sending"
    HERE = "here"  # the fleet has it whole
    REFUSED = "refused"  # by the device, for its size, or given up; the reason says why
    CANCELLED = "cancelled"


class ResultsReport(Wire):
    """How a device stands with an output that its assignment asks for: wanted, sending or refused."""

    id: str = Field(max_length=64)  # of the job
    state: ResultsState
    reason: str | None = Field(default=None, max_length=1000)
