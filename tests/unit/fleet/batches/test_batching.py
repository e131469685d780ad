"""Batch jobs in the fleet: carried by assignments until they have ended, and followed by what devices say."""

from __future__ import annotations

import pytest

from fleet_parts import DIGITS, SimulatedFleet
from regatta_fleet.batches import batching
from regatta_fleet.database import devices
from regatta_fleet.devices.ingest import Stored
from regatta_fleet.errors import Conflict, NotFound
from regatta_fleet.schemas import BatchOnDevice, BatchRequest
from regatta_protocol.batch import MAX_BATCH_JOBS, BatchReport, BatchState, BatchSummary
from regatta_protocol.bus import Message
from regatta_protocol.codec import encode
from regatta_protocol.errors import Rejected
from regatta_protocol.ids import DeviceId, ModelName
from regatta_protocol.messages import Reported
from regatta_protocol.topics import Up, up

SUMMARY = BatchSummary(records=40, refused=1, seconds=2.0, per_second=20.0, classes={"seven": 39})
PI = DeviceId("pi-1")
_S = BatchState


class Batches:
    """A fleet with the model `digits`, and two devices of which one talks."""

    def __init__(self) -> None:
        self.fleet = SimulatedFleet()
        self.fleet.enroll("pi-1", group="lab")
        self.fleet.enroll("pi-2")
        self.fleet.push(1)
        self.sequence = 0

    def start(self, identifier: str = "b-1", **fields: object) -> set[DeviceId]:
        given = {"model": DIGITS, "on": ("group:lab",), "input": "/data/in"}
        with self.fleet.database.write() as tx:
            return batching.start_batch(tx, identifier, BatchRequest.model_validate({**given, **fields}), 1000.0)

    def cancel(self, identifier: str = "b-1") -> set[DeviceId]:
        with self.fleet.database.write() as tx:
            return batching.cancel_batch(tx, identifier, 1001.0)

    def wanted(self) -> tuple[int, list[str]]:
        """Return the device's generation, and the jobs in its assignment."""
        with self.fleet.database.read() as tx:
            found = devices.get_desired(tx, PI)
        assert found is not None
        return found.generation, [job.id for job in found.batch]

    def say(self, *reports: BatchReport, generation: int | None = None, old_agent: bool = False) -> object:
        """Have the device report; return what the ingest makes of it."""
        self.sequence += 1
        reported = Reported(
            device=PI,
            generation=self.wanted()[0] if generation is None else generation,
            sequence=self.sequence,
            agent_version="0",
            boot="b",
            batch=None if old_agent else reports,
        )
        return self.fleet.ingest.take(Message(up(PI, Up.REPORTED), encode(reported)), 1002.0)

    def shown(self, identifier: str = "b-1") -> BatchOnDevice:
        with self.fleet.database.read() as tx:
            return batching.describe(tx, identifier).devices[0]


def report(state: BatchState, **fields: object) -> BatchReport:
    return BatchReport.model_validate({"id": "b-1", "state": state, **fields})


def test_a_job_is_asked_for_until_its_end_was_heard() -> None:
    """A new generation begins it and another acknowledges its end; a repeated report changes nothing."""
    batches = Batches()
    assert batches.start(format="csv", limit=7) == {PI}
    begun = batches.wanted()
    assert begun[1] == ["b-1"]

    assert batches.say(report(_S.RUNNING, records=9, total=40)) == Stored(PI, False)
    assert (batches.shown().state, batches.shown().records) == (_S.RUNNING, 9)
    assert batches.say(report(_S.DONE, records=40, summary=SUMMARY)) == Stored(PI, True)

    assert batches.shown().summary == SUMMARY
    assert batches.wanted() == (begun[0] + 1, [])
    assert batches.say(report(_S.DONE, records=40, summary=SUMMARY)) == Stored(PI, False)
    assert batches.wanted()[0] == begun[0] + 1
    with batches.fleet.database.read() as tx:
        (listed,) = batching.list_batches(tx)
    assert (listed.output, listed.limit) == ("b-1.csv", 7)


def test_a_cancelled_job_is_so_once_the_device_has_stopped() -> None:
    """Until then its state is what the device said last; an end that came before counts as that end."""
    batches = Batches()
    batches.start()
    before = batches.wanted()[0]
    batches.say(report(_S.RUNNING))
    assert batches.cancel() == {PI}
    assert batches.wanted() == (before + 1, [])

    batches.say(report(_S.RUNNING), generation=before)
    assert (batches.shown().state, "has not said yet" in (batches.shown().reason or "")) == (_S.RUNNING, True)
    batches.say(report(_S.CANCELLED, reason="the fleet no longer asks for it"))
    assert batches.shown().state is _S.CANCELLED
    with pytest.raises(Conflict, match="has ended or was cancelled"):
        batches.cancel()


def test_a_device_that_never_began_is_believed_when_it_has_the_newer_assignment() -> None:
    """It was away from start to cancel: its report names no job, and that is the end of it."""
    batches = Batches()
    batches.start()
    batches.cancel()

    batches.say()

    assert (batches.shown().state, batches.shown().reason) == (_S.CANCELLED, "cancelled before it ended")


def test_an_agent_that_knows_no_jobs_is_named() -> None:
    """It stays queued with that reason: an update of the agent is all that it needs."""
    batches = Batches()
    batches.start()

    batches.say(old_agent=True)

    assert batches.shown().state is _S.QUEUED
    assert "knows no batch jobs: update it" in (batches.shown().reason or "")


def test_a_revoked_device_holds_no_job_open() -> None:
    """It is not heard any more."""
    batches = Batches()
    batches.start()
    with batches.fleet.database.write() as tx:
        batching.note_revoked(tx, PI, 1003.0)

    assert (batches.shown().state, batches.shown().reason) == (_S.CANCELLED, "the device was revoked")


def test_what_cannot_be_started_is_refused_whole() -> None:
    """An unknown model or device, and more jobs than a device may have; nothing is stored of it."""
    batches = Batches()
    with pytest.raises(NotFound, match="no model 'away'"):
        batches.start(model=ModelName("away"))
    with pytest.raises(Rejected, match="no device"):
        batches.start(on=("pi-9",))
    for number in range(MAX_BATCH_JOBS):
        batches.start(f"b-{number}")
    with pytest.raises(Conflict, match="pi-1 has 8 jobs"):
        batches.start("b-over", on=("all",))

    with batches.fleet.database.read() as tx:
        assert len(batching.list_batches(tx)) == MAX_BATCH_JOBS
