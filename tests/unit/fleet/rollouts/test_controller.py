"""The controller says what every device shall run, again after each connection, and survives whatever comes in."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from fleet_parts import DIGITS, SimulatedFleet
from regatta_fleet.database import devices
from regatta_fleet.devices.answering import Answers
from regatta_fleet.errors import Busy
from regatta_fleet.rollouts import rolling
from regatta_fleet.rollouts.announcing import Announcer
from regatta_fleet.rollouts.controller import Controller, Inbox
from regatta_fleet.schemas import RolloutRequest, RolloutState
from regatta_protocol.bus import Event, Message
from regatta_protocol.codec import decode, decode_zlib, encode, encode_zlib
from regatta_protocol.errors import Rejected, Retryable
from regatta_protocol.ids import DeviceId, digest_of_bytes
from regatta_protocol.measurement import BoardFacts, PriorRace, RaceReport
from regatta_protocol.messages import (
    Assignment,
    Get,
    Presence,
    RaceItem,
    Request,
    Response,
    SignedAssignment,
    TelemetryBatch,
)
from regatta_protocol.testing import MemoryBroker, MemoryBus
from regatta_protocol.topics import SERVER_FILTERS, Up, device_filters, up

PI = DeviceId("pi")


class _Signer:
    """Signs nothing: what is asserted here is when and what is said. Real signatures: test_api.py."""

    def sign(self, assignment: Assignment) -> SignedAssignment:
        return SignedAssignment(payload=encode(assignment).decode(), key_id="k", signature="s")


class _Metadata:
    def __init__(self) -> None:
        self.error: Exception | None = None
        self.refreshed = 0

    def add_target(self, path: str, data: bytes) -> None:
        raise AssertionError

    def refresh_online(self) -> tuple[str, ...]:
        self.refreshed += 1
        return ("bring the root key",)

    def files_for(self, target: str, root_version: int) -> dict[str, str]:
        if self.error is not None:
            raise self.error
        return {"timestamp.json": f"{target} {root_version}"}


class _Sender:
    def __init__(self) -> None:
        self.taken: list[tuple[DeviceId, Get]] = []

    def take(self, device: DeviceId, get: Get) -> None:
        self.taken.append((device, get))

    def published(self, token: int) -> None:
        pass


@dataclass
class Stage:
    """A controller that is stepped by hand, with one device on the other side of the broker."""

    fleet: SimulatedFleet
    broker: MemoryBroker
    controller: Controller
    inbox: Inbox
    device: MemoryBus
    heard: queue.Queue[Event]
    metadata: _Metadata
    sender: _Sender

    def settle(self) -> None:
        """Step until nothing is left to take."""
        while not self.inbox.empty():
            self.controller.step(0)
        self.controller.step(0)

    def messages(self, ending: str) -> list[bytes]:
        """Return the payloads that the device heard since the last call."""
        found = []
        while not self.heard.empty():
            event = self.heard.get_nowait()
            if isinstance(event, Message) and event.topic.endswith(ending):
                found.append(event.payload)
        return found

    def assignments(self) -> list[tuple[int, int | None]]:
        """Return generation and version of digits of each assignment that the device heard since the last call."""
        found = []
        for payload in self.messages("/dn/desired"):
            assignment = decode(Assignment, decode(SignedAssignment, payload).payload.encode())
            model = assignment.models.get(DIGITS)
            found.append((assignment.generation, None if model is None else model.version))
        return found


@pytest.fixture
def stage() -> Iterator[Stage]:
    fleet = SimulatedFleet()
    fleet.enroll("pi")
    broker = MemoryBroker()
    inbox: Inbox = queue.Queue(1000)
    bus = MemoryBus(broker, "regatta-server", inbox, filters=SERVER_FILTERS)
    metadata, sender = _Metadata(), _Sender()
    announcer = Announcer("f", fleet.database, bus, _Signer(), lambda: fleet.now)
    answers = Answers(fleet.database, metadata, lambda: fleet.now)
    controller = Controller(
        fleet.database, bus, inbox, fleet.ingest, announcer, answers, metadata, sender, clock=lambda: fleet.now
    )
    heard: queue.Queue[Event] = queue.Queue(1000)
    device = MemoryBus(broker, "pi", heard, filters=device_filters(PI))
    device.start()
    bus.start()
    yield Stage(fleet, broker, controller, inbox, device, heard, metadata, sender)
    device.stop()
    bus.stop()


def _start_rollout(stage: Stage) -> str:
    stage.fleet.push(1)
    identifier = "r-1"
    with stage.fleet.database.write() as tx:
        rolling.start_rollout(tx, identifier, _request(), stage.fleet.now)
    return identifier


def _request() -> RolloutRequest:
    return RolloutRequest(model=DIGITS, version=1, waves=(1.0,))


def test_a_wave_is_said_and_its_reports_move_it(stage: Stage) -> None:
    """Nobody has to ask: time and messages are enough."""
    stage.settle()
    assert stage.assignments() == [(0, None)]
    identifier = _start_rollout(stage)
    stage.settle()
    assert stage.assignments() == [(1, 1)]

    stage.fleet.report(PI)
    stage.settle()

    assert stage.fleet.detail(identifier).state is RolloutState.COMPLETED


def test_all_is_said_again_after_each_connection(stage: Stage) -> None:
    """The broker may have lost what it acknowledged."""
    _start_rollout(stage)
    stage.settle()
    stage.assignments()

    stage.broker.cut("regatta-server")
    stage.settle()

    assert (1, 1) in stage.assignments()


def test_time_alone_ends_a_wave(stage: Stage) -> None:
    """A tick without any event notices it."""
    identifier = _start_rollout(stage)
    stage.settle()
    stage.fleet.now += 4000
    stage.settle()

    assert stage.fleet.detail(identifier).state is RolloutState.ROLLED_BACK
    assert stage.assignments()[-1] == (2, None)


def test_presence_is_forgotten_at_a_connection(stage: Stage) -> None:
    """Who is up says so again by its retained message."""
    stage.device.publish(up(PI, Up.STATE), encode(Presence(up=True)), retain=True)
    stage.settle()
    with stage.fleet.database.read() as tx:
        row = devices.get_device(tx, PI)
    assert row is not None
    assert row.up


def test_metadata_is_answered(stage: Stage) -> None:
    """With files, or with words and whether to ask again."""
    stage.settle()
    answers = []
    good: dict[str, str | int] = {"target": "t", "root_version": 1}
    for error, params in (
        (None, good),
        (Rejected("no such target"), good),
        (Retryable("later"), good),
        (None, {"target": 1}),
    ):
        stage.metadata.error = error
        stage.device.publish(up(PI, Up.REQUEST), encode(Request(id="7", method="metadata", params=params)))
        stage.settle()
        answers += [decode_zlib(Response, payload) for payload in stage.messages("/dn/response")]

    assert [(answer.id, answer.files, answer.retryable) for answer in answers] == [
        ("7", {"timestamp.json": "t 1"}, False),
        ("7", None, False),
        ("7", None, True),
        ("7", None, False),
    ]
    assert [answer.error for answer in answers[1:3]] == ["no such target", "later"]


def test_a_race_result_is_answered(stage: Stage) -> None:
    """With what another device found, or with words when nobody raced it or the key is none."""
    stage.settle()
    stage.fleet.enroll("neighbor")
    key = digest_of_bytes(b"key")
    report = RaceReport(
        model="digits", version=1, board=BoardFacts(), candidates=(), placement="a/b/c/t1", reason="r", duration_s=1,
        key=key,
    )  # fmt: skip
    batch = TelemetryBatch(id="batch-0001", device=DeviceId("neighbor"), items=(RaceItem(at=7.0, report=report),))
    stage.fleet.ingest.take(Message(up(DeviceId("neighbor"), Up.TELEMETRY), encode_zlib(batch)), 8.0)
    answers = []
    for asked in (key, digest_of_bytes(b"other"), "../x", 7):
        stage.device.publish(up(PI, Up.REQUEST), encode(Request(id="8", method="race", params={"key": asked})))
        stage.settle()
        answers += [decode_zlib(Response, payload) for payload in stage.messages("/dn/response")]

    known = PriorRace(device=DeviceId("neighbor"), at=7.0, report=report)
    assert [answer.race for answer in answers] == [known, None, None, None]
    assert "no device of this kind" in (answers[1].error or "")
    assert all("param key" in (answer.error or "") for answer in answers[2:])
    assert not any(answer.retryable for answer in answers)


def test_gets_go_to_the_sender(stage: Stage) -> None:
    """The controller itself reads no blob."""
    get = Get(transfer=1, digest=digest_of_bytes(b""), chunk_bytes=1024, ranges=((0, 1),))
    stage.device.publish(up(PI, Up.GET), encode(get))
    stage.settle()
    assert stage.sender.taken == [(PI, get)]


def test_metadata_is_kept_fresh(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """From the first step on; what only an operator can do is said."""
    with caplog.at_level(logging.WARNING):
        stage.settle()
    assert stage.metadata.refreshed == 1
    assert "bring the root key" in caplog.text


def test_a_revoked_device_loses_what_is_retained_for_it(stage: Stage) -> None:
    """And is not believed any more."""
    stage.settle()
    with stage.fleet.database.write() as tx:
        devices.revoke_device(tx, PI, 1.0)
    stage.controller.note_change(PI)
    stage.settle()

    assert stage.messages("/dn/desired")[-1] == b""


def test_calls_are_carried_out_on_its_thread(stage: Stage) -> None:
    """Their errors are the caller's; a full inbox is told as busy; one that is given up is not carried out."""
    done: list[str] = []
    with pytest.raises(Busy, match="try again"):
        stage.controller.call(lambda: done.append("late"), timeout_s=0.01)
    stage.controller.start()
    try:
        assert stage.controller.call(lambda: threading.current_thread().name) == "controller"
        with pytest.raises(Rejected, match="mine"):
            stage.controller.call(_refuse)
    finally:
        stage.controller.stop()
    while not stage.inbox.full():
        stage.inbox.put(Message("x", b""))
    with pytest.raises(Busy):
        stage.controller.call(lambda: None, timeout_s=0.01)

    assert done == []


def test_a_bad_event_does_not_end_the_thread(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is logged, and the next one is taken."""

    def broken(*_args: object) -> None:
        raise ZeroDivisionError

    stage.controller.start()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(stage.fleet.ingest, "take", broken)
            stage.inbox.put(Message("x", b"y"))
            assert stage.controller.call(lambda: 1, timeout_s=10) == 1
    finally:
        stage.controller.stop()


def _refuse() -> None:
    raise Rejected("mine")


def test_what_was_assigned_by_a_clock_that_was_ahead_is_said_again_when_it_is_right(stage: Stage) -> None:
    """Once, with the right time: devices would believe no metadata until the years had passed."""

    def times() -> list[tuple[int, float]]:
        heard = [decode(SignedAssignment, payload).payload for payload in stage.messages("/dn/desired")]
        return [(one.generation, one.issued_at) for one in (decode(Assignment, text.encode()) for text in heard)]

    right_s = stage.fleet.now
    stage.fleet.now = right_s + 3.2e8
    _start_rollout(stage)
    stage.settle()
    assert times()[-1] == (1, right_s + 3.2e8)

    stage.fleet.now = right_s + 100.0
    for _ in range(2):
        stage.controller._next_refresh_s = 0.0
        stage.settle()
    stage.settle()

    assert times() == [(2, right_s + 100.0)]
