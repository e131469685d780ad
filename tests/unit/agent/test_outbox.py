"""The outbox: nothing is told twice under two ids, nothing grows without bound, nothing stops the agent."""

from __future__ import annotations

import itertools
import sqlite3
from contextlib import suppress
from pathlib import Path
from unittest import mock

import pytest

from regatta_agent.outbox import MAX_BATCH_ITEMS, Outbox
from regatta_protocol.codec import decode_zlib
from regatta_protocol.errors import Retryable
from regatta_protocol.ids import DeviceId, ModelName
from regatta_protocol.messages import ServingWindow, TelemetryBatch


def window(number: int, buckets: int = 3) -> ServingWindow:
    return ServingWindow(
        model=ModelName("m"), version=1, placement="p", start=number, stop=number + 1, requests=buckets, errors=0,
        latency_counts={i * 7919 % 1_000_003: i * 104_729 % 999_983 for i in range(buckets)},
    )  # fmt: skip


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return opened(tmp_path)


def opened(folder: Path, max_bytes: int = 1_000_000) -> Outbox:
    ids = itertools.count(1)
    outbox = Outbox(folder / "outbox.sqlite", DeviceId("d"), max_bytes, lambda: f"batch-{next(ids):04d}")
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


def test_the_oldest_go_first_and_their_number_is_told_once(tmp_path: Path) -> None:
    """Bounded by bytes; the next batch says how many were dropped, the one after says none."""
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
    connection = Outbox._connection
    monkeypatch.setattr(Outbox, "_connection", mock.Mock(side_effect=sqlite3.OperationalError(words)))
    for use in (lambda: outbox.put(window(1)), outbox.batches, outbox.new_batch, lambda: outbox.acknowledge("b")):
        with pytest.raises(Retryable, match=r"outbox\.sqlite"):
            use()
    monkeypatch.setattr(Outbox, "_connection", connection)
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
    batch = outbox.new_batch()
    assert batch is not None
    misread = mock.Mock(side_effect=[sqlite3.DatabaseError("malformed"), 0, 0])
    monkeypatch.setattr("regatta_agent.outbox._measured", misread)
    with pytest.raises(Retryable, match="misread"):
        outbox.acknowledge(batch)

    assert outbox.batches() == [batch]
