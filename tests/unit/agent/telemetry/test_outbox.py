"""The outbox: nothing is told twice under two ids, nothing grows without bound, nothing stops the agent."""

from __future__ import annotations

import itertools
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regatta_agent.telemetry.backlog import Backlog, read_backlog
from regatta_agent.telemetry.batches import MAX_BATCH_ITEMS
from regatta_agent.telemetry.outbox import Outbox
from regatta_agent.telemetry.outbox_file import OutboxFile
from regatta_protocol import sketch
from regatta_protocol.codec import decode_zlib
from regatta_protocol.errors import Retryable
from regatta_protocol.ids import DeviceId, ModelName
from regatta_protocol.measurement import BoardFacts, RaceReport
from regatta_protocol.messages import RaceItem, TelemetryBatch
from regatta_protocol.plain import to_json
from regatta_protocol.values import Accuracy, ServingWindow


def window(number: int, buckets: int = 3, placement: str | None = None) -> ServingWindow:
    """A window; each is of a placement of its own unless one is given."""
    return ServingWindow(
        model=ModelName("m"), version=1, placement=placement or f"p{number}", start=float(number),
        stop=float(number + 1),
        requests=buckets, errors=number % 2, feedback=Accuracy(correct=number % 3, total=3),
        latency_counts={i * 7919 % 1_000_003: i * 104_729 % 999_983 for i in range(buckets)},
        stage_counts={} if number % 5 else {"queue": {1: buckets}, "compute_infer": {number % 2: buckets}},
    )  # fmt: skip


def race(number: int) -> RaceItem:
    report = RaceReport(model="m", version=number, board=BoardFacts(), candidates=(), reason="none", duration_s=1.0)
    return RaceItem(at=number, report=report)


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return opened(tmp_path)


def opened(
    folder: Path,
    max_bytes: int = 1_000_000,
    max_age_s: float = 1e9,
    monotonic: Callable[[], float] = lambda: 0.0,
    first_id: int = 1,
) -> Outbox:
    ids = itertools.count(first_id)
    outbox = Outbox(
        folder / "outbox.sqlite", DeviceId("d"), max_bytes, lambda: f"batch-{next(ids):04d}",
        max_age_s=max_age_s, monotonic=monotonic,
    )  # fmt: skip
    outbox.open()
    return outbox


def read(outbox: Outbox, batch: str | None) -> TelemetryBatch:
    assert batch is not None
    payload = outbox.payload(batch)
    assert payload is not None
    return decode_zlib(TelemetryBatch, payload)


def test_a_batch_keeps_id_and_items_over_a_restart(outbox: Outbox, tmp_path: Path) -> None:
    """The idempotency key is durable with its content."""
    for number in range(MAX_BATCH_ITEMS + 5):
        outbox.put(window(number))
    first = read(outbox, outbox.new_batch())
    outbox.close()
    again = opened(tmp_path)
    again.put(window(99))

    assert again.batches() == [first.id]
    assert read(again, first.id) == first
    assert len(first.items) == MAX_BATCH_ITEMS
    again.acknowledge(first.id)
    assert again.waiting() == 6


def test_windows_of_one_placement_travel_as_one(outbox: Outbox) -> None:
    """After a day without network a device sends its sums, and not its history; races keep their place."""
    for number in range(200):
        outbox.put(window(number, placement="a" if number % 2 else "b"))
    outbox.put(race(1))
    batch = read(outbox, outbox.new_batch())
    windows = [item for item in batch.items if isinstance(item, ServingWindow)]

    assert [(item.placement, item.start, item.stop, item.requests) for item in windows] == [
        ("b", 0, 199, 300),
        ("a", 1, 200, 300),
    ]
    assert [sketch.total(item.latency_counts) for item in windows] == [100 * sketch.total(window(0).latency_counts)] * 2
    assert isinstance(batch.items[2], RaceItem)
    assert outbox.unsent() == 0


def test_the_oldest_are_thinned_before_anything_is_dropped(tmp_path: Path) -> None:
    """A small outbox holds any length of one placement's windows, the newest as fine as they came."""
    outbox = opened(tmp_path, max_bytes=2000)
    for number in range(50):
        outbox.put(window(number, placement="a"))
    waits = read_backlog(tmp_path / "outbox.sqlite")
    batch = read(outbox, outbox.new_batch())

    assert waits is not None
    assert (waits.dropped, waits.items + waits.thinned) == (0, 50)
    assert waits.size_bytes <= 2000
    windows = [item for item in batch.items if isinstance(item, ServingWindow)]
    assert (batch.dropped, sum(item.requests for item in windows)) == (0, 150)
    stages = sketch.merge_named(item.stage_counts for item in windows)
    assert stages == {"queue": {1: 30}, "compute_infer": {0: 15, 1: 15}}


def test_the_oldest_go_first_and_their_number_is_told_once(tmp_path: Path) -> None:
    """What cannot be merged is bounded too; the next batch says how many were dropped, the one after says none."""
    outbox = opened(tmp_path, max_bytes=2000)
    for number in range(50):
        outbox.put(window(number))
    kept = outbox.waiting()
    batch = read(outbox, outbox.new_batch())

    assert batch.dropped == 50 - kept > 0
    assert [item.start for item in batch.items if isinstance(item, ServingWindow)] == list(range(50 - kept, 50))
    outbox.acknowledge(batch.id)
    outbox.put(window(60))
    assert read(outbox, outbox.new_batch()).dropped == 0
    assert read_backlog(tmp_path / "outbox.sqlite") == Backlog(1, len(encoded(60)), 0, 50 - kept)


def encoded(number: int) -> bytes:
    return to_json(window(number))


def test_what_is_too_old_goes_by_the_agents_own_time(tmp_path: Path) -> None:
    """Age is what the agent has run, over restarts: a clock that jumps by years drops nothing, and no clock neither."""
    now = [5000.0]
    outbox = opened(tmp_path, max_age_s=100.0, monotonic=lambda: now[0])
    outbox.put(window(1))
    now[0] += 60
    outbox.put(window(2_000_000_000))
    outbox.close()
    now[0] = 3.0  # the machine was started again
    outbox = opened(tmp_path, max_age_s=100.0, monotonic=lambda: now[0])
    now[0] += 50
    batch = read(outbox, outbox.new_batch())

    assert [item.start for item in batch.items if isinstance(item, ServingWindow)] == [2_000_000_000]
    assert batch.dropped == 1


def test_a_batch_that_is_too_large_to_travel_is_split(outbox: Outbox) -> None:
    """Everything arrives in the end, each item once."""
    for number in range(30):
        outbox.put(window(number, buckets=1500))
    seen: list[float] = []
    for _ in range(100):
        waiting = outbox.batches()
        name = waiting[0] if waiting else outbox.new_batch()
        if name is None:
            break
        payload = outbox.payload(name)
        if payload is None:
            continue
        batch = decode_zlib(TelemetryBatch, payload)
        seen += [item.start for item in batch.items if isinstance(item, ServingWindow)]
        outbox.acknowledge(batch.id)

    assert sorted(seen) == list(range(30))
    assert outbox.waiting() == 0


_ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 2)),
        st.tuples(st.sampled_from(["batch", "send", "acknowledge", "restart"]), st.just(0)),
    ),
    max_size=60,
)


@settings(max_examples=40)
@given(_ACTS, st.sampled_from([1500, 1_000_000]))
def test_every_request_is_counted_once_whatever_happens(acts: list[tuple[str, int]], max_bytes: int) -> None:
    """Batches lost, repeated, cut off by restarts: what the server adds up is what was served, less what was dropped.

    The server counts a batch by its id, once; the outbox is never over its bound.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        outbox = opened(folder, max_bytes)
        served, counted = 0, 0
        received: dict[str, TelemetryBatch] = {}

        def deliver() -> None:
            for batch in outbox.batches():
                payload = outbox.payload(batch)
                if payload is not None:
                    told = decode_zlib(TelemetryBatch, payload)
                    assert received.setdefault(told.id, told) == told

        for number, (act, placement) in enumerate([*acts, ("batch", 0), ("batch", 0), ("batch", 0), ("send", 0)]):
            if act == "put":
                outbox.put(window(number, placement=f"p{placement}"))
                served += 3
            elif act == "batch":
                outbox.new_batch()
            elif act == "send":
                deliver()
            elif act == "acknowledge":
                deliver()
                for batch in outbox.batches():
                    outbox.acknowledge(batch)
            else:
                outbox.close()
                outbox = opened(folder, max_bytes, first_id=100 * (number + 1))
            waits = read_backlog(folder / "outbox.sqlite")
            assert waits is not None and waits.size_bytes <= max_bytes
        waits = read_backlog(folder / "outbox.sqlite")
        outbox.close()
        items = [item for batch in received.values() for item in batch.items]
        counted = sum(item.requests for item in items if isinstance(item, ServingWindow))
        assert waits is not None
        # A window that is dropped may hold several that were merged before, so the number of drops bounds from below.
        assert counted <= served
        assert counted == served or waits.dropped > 0
        assert waits.dropped == sum(batch.dropped for batch in received.values())


@pytest.mark.parametrize("garbage", [b"", b"not a database at all" * 50, b"SQLite format 3\x00" + b"\xff" * 4096])
def test_a_damaged_file_is_put_aside(tmp_path: Path, garbage: bytes) -> None:
    """Telemetry never stops the agent."""
    (tmp_path / "outbox.sqlite").write_bytes(garbage)
    outbox = opened(tmp_path)
    outbox.put(window(1))

    assert outbox.waiting() == 1


@pytest.mark.parametrize(
    "words", ["database or disk is full", "attempt to write a readonly database", "disk I/O error"]
)
def test_a_file_that_cannot_be_used_now_loses_an_item_and_counts_it(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    """Whatever the disk says is told as something to try again; the next batch says how many went."""
    connection = OutboxFile._connection
    monkeypatch.setattr(OutboxFile, "_connection", mock.Mock(side_effect=sqlite3.OperationalError(words)))
    for use in (lambda: outbox.put(window(1)), outbox.batches, outbox.new_batch, lambda: outbox.acknowledge("b")):
        with pytest.raises(Retryable, match=r"outbox\.sqlite"):
            use()
    monkeypatch.setattr(OutboxFile, "_connection", connection)
    outbox.put(window(2))

    assert read(outbox, outbox.new_batch()).dropped == 1


def test_a_file_that_is_damaged_at_work_is_put_aside(outbox: Outbox, tmp_path: Path) -> None:
    """The item at hand is lost and counted, the one after it is kept, and the damaged file stays for who asks."""
    for number in range(40):
        outbox.put(window(number))
    outbox.close()
    path = tmp_path / "outbox.sqlite"
    path.write_bytes(path.read_bytes()[:4096] + b"\x5a" * (path.stat().st_size - 4096))
    again = opened(tmp_path)
    with suppress(Retryable):
        again.new_batch()
    with suppress(Retryable):
        again.put(window(1))
    again.put(window(2))

    assert path.with_suffix(".damaged").exists()
    assert again.waiting() >= 1


def test_a_file_that_was_misread_once_is_kept(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite calls a page that could not be read damaged; only a file that is so when opened anew is put aside."""
    outbox.put(window(1))
    monkeypatch.setattr(Outbox, "_bind", mock.Mock(side_effect=sqlite3.DatabaseError("malformed")))
    with pytest.raises(Retryable, match="misread"):
        outbox.new_batch()

    assert outbox.waiting() == 1


def test_a_file_of_an_earlier_agent_is_taken_over(tmp_path: Path) -> None:
    """What an older version stored is sent; its rows have no series and no age."""
    old = sqlite3.connect(tmp_path / "outbox.sqlite")
    old.executescript(
        "CREATE TABLE items (id INTEGER PRIMARY KEY AUTOINCREMENT, batch TEXT, size_bytes INTEGER NOT NULL,"
        " body BLOB NOT NULL);"
        "CREATE TABLE batches (id TEXT PRIMARY KEY, dropped INTEGER NOT NULL);"
        "CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL);"
        "INSERT INTO counters VALUES ('dropped', 3);"
    )
    old.execute("INSERT INTO items (size_bytes, body) VALUES (?, ?)", (len(encoded(1)), encoded(1)))
    old.commit()
    old.close()
    outbox = opened(tmp_path)
    outbox.put(window(2))
    batch = read(outbox, outbox.new_batch())

    assert (batch.dropped, batch.items) == (3, (window(1), window(2)))
