"""The receiver of a blob, over simulated links: it completes, wastes little, and leaves room for commands."""

from __future__ import annotations

import random
from functools import partial

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from regatta_agent.core.transfer import MAX_FRUITLESS, MAX_WINDOW, Transfer, empty_bitmap
from regatta_protocol.chunk import Chunk
from regatta_protocol.errors import Rejected
from regatta_protocol.ids import digest_of_bytes
from simulated_link import Link, run_link

CHUNK = 16_384
MEGABIT = 125_000.0  # bytes per second
DATA = random.Random(1).randbytes(4 * 1024 * 1024)
DIGEST = digest_of_bytes(DATA)


def _has_only(missing: int, transfer: Transfer) -> bool:
    return transfer.missing <= missing


def blob(size_bytes: int = len(DATA), have: bytes | None = None, chunk_bytes: int = CHUNK) -> Transfer:
    return Transfer(1, DIGEST, size_bytes, chunk_bytes, have)


@settings(max_examples=300)
@example(seed=198, size_bytes=344_065, link=Link(20_000, 0.5, drop=0.25, truncate=0.125, drop_up=0.1875))  # stalls
@given(
    seed=st.integers(0, 2**32),
    size_bytes=st.integers(0, 1_500_000),
    link=st.builds(
        Link,
        bytes_per_s=st.floats(20_000, 20e6),
        trip_s=st.floats(0.001, 0.8),
        jitter_s=st.floats(0, 0.3),
        drop=st.floats(0, 0.3),
        duplicate=st.floats(0, 0.3),
        reorder=st.floats(0, 0.1),
        truncate=st.floats(0, 0.2),
        drop_up=st.floats(0, 0.2),
    ),
)
def test_it_completes_over_any_link(seed: int, size_bytes: int, link: Link) -> None:
    """Whatever is lost, doubled, late or cut: every byte ends in its place, and nothing here is asked for again.

    On the worst of these links nearly half of all round trips fail, so eight in a row now and then do: it stalls, and
    is resumed, as the agent does.
    """
    transfer, received = blob(size_bytes), bytearray(size_bytes)

    for attempt in range(20):
        outcome = run_link(transfer, DATA[:size_bytes], link, seed + attempt, received=received)
        assert outcome.violations == []
        if transfer.complete:
            break
        assert transfer.stalled
        transfer.resume()

    assert transfer.complete and transfer.missing == 0
    assert bytes(received) == DATA[:size_bytes]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    "link",
    [
        Link(MEGABIT, 0.2, drop=0.02),
        Link(1e6, 0.1, jitter_s=0.05, drop=0.1, truncate=0.05, duplicate=0.1, drop_up=0.05),
        Link(1e6, 0.05, reorder=0.1),
        Link(10e6, 0.02, jitter_s=0.02, drop=0.05),
    ],
    ids=["wire.md", "messy", "reordering", "jitter"],
)
def test_what_is_asked_for_twice_in_vain_stays_under_five_percent(link: Link, seed: int) -> None:
    """Beyond what the link lost, at most 5 % of the chunks are asked for again."""
    outcome = run_link(blob(), DATA, link, seed)

    assert outcome.extra(len(DATA) // CHUNK) <= 0.05


@pytest.mark.parametrize(
    ("link", "share"),
    [
        (Link(MEGABIT, 0.2, drop=0.02), 0.85),  # the link of wire.md, where a window of 1 has 35-61 %
        (Link(10 * MEGABIT, 0.05), 0.9),
        (Link(8 * MEGABIT, 0.1, jitter_s=0.3), 0.5),  # a window that follows the rate alone dwindles here
    ],
    ids=["1 Mbit/s, 200 ms, 2 % loss", "10 Mbit/s, 50 ms", "8 Mbit/s, 100 ms + up to 300 ms"],
)
def test_the_link_is_used(link: Link, share: float) -> None:
    """The window grows to what the link holds."""
    outcome = run_link(blob(), DATA, link, 3)

    assert len(DATA) / link.bytes_per_s / outcome.took_s > share


def test_a_command_does_not_wait_long_behind_chunks() -> None:
    """On a slow link the window keeps the queue short: 1.5 s at worst, where 4 MiB in one piece take 34 s."""
    outcome = run_link(blob(), DATA, Link(MEGABIT, 0.2), 3)

    assert outcome.most_queued_s < 1.5
    assert outcome.peak_window <= 16


@settings(max_examples=100)
@given(seed=st.integers(0, 2**32), cuts=st.lists(st.integers(1, 80), max_size=5), size_bytes=st.integers(1, 1_500_000))
def test_the_bitmap_resumes(seed: int, cuts: list[int], size_bytes: int) -> None:
    """A new Transfer from the bitmap goes on where the old one was killed, and asks for nothing that is here."""
    received, data, have = bytearray(size_bytes), DATA[:size_bytes], None
    for arrivals in [*cuts, 10**9]:
        transfer = blob(size_bytes, have)
        enough = partial(_has_only, transfer.missing - arrivals)
        outcome = run_link(transfer, data, Link(1e6, 0.05, drop=0.05), seed, until=enough, received=received)
        assert outcome.violations == []
        have = transfer.bitmap()

    assert bytes(received) == data
    assert blob(size_bytes, have).complete


def test_silence_is_asked_into_with_back_off_and_then_given_up() -> None:
    """Eight timeouts in a row, each longer than the one before up to a cap, and the transfer is stalled."""
    transfer = blob()
    now_s, waits = 0.0, []
    while (get := transfer.next_get(now_s)) is not None:
        assert get.ranges == ((0, 1),)
        wake_s = transfer.wake_s()
        assert wake_s is not None
        waits.append(wake_s - now_s)
        now_s = wake_s

    assert transfer.stalled
    assert waits == [5.0, 10.0, 20.0, 40.0, 60.0, 60.0, 60.0, 60.0]
    assert len(waits) == MAX_FRUITLESS
    transfer.resume()
    assert not transfer.stalled and transfer.next_get(now_s) is not None


def test_after_a_lost_connection_the_same_is_asked_for_again_at_once() -> None:
    """QoS 0 does not outlive its connection, so waiting for a timeout would be vain."""
    transfer = blob()
    first = transfer.next_get(0.0)
    assert transfer.next_get(0.1) is None

    transfer.on_lost_connection()

    again = transfer.next_get(0.2)
    assert first is not None and again is not None and again.ranges == first.ranges


def test_strangers_and_duplicates_are_nothing() -> None:
    """Another transfer's chunk, one beyond the end, one of a wrong length, and a second copy all change nothing."""
    transfer = blob(CHUNK + 10)
    whole = Chunk(1, 0, DATA[:CHUNK])
    transfer.next_get(0.0)

    strangers = [Chunk(2, 0, whole.payload), Chunk(1, 2, b"x"), Chunk(1, 0, b"short"), Chunk(1, 1, whole.payload)]
    assert [transfer.on_chunk(0.1, chunk) for chunk in strangers] == [None] * 4
    assert transfer.on_chunk(0.1, whole) == 0
    assert transfer.on_chunk(0.1, whole) is None
    assert transfer.on_chunk(0.1, Chunk(1, 1, DATA[:10])) == CHUNK
    assert transfer.complete and transfer.next_get(0.2) is None and transfer.wake_s() is None


def test_an_empty_blob_is_complete() -> None:
    """There is nothing to ask for."""
    transfer = blob(0)

    assert transfer.complete and transfer.next_get(0.0) is None and transfer.bitmap() == b""


@pytest.mark.parametrize("have", [b"", b"\0\0", b"\x08"])
def test_a_bitmap_of_another_size_is_refused(have: bytes) -> None:
    """Too short, too long, or with a bit beyond the last of three chunks."""
    with pytest.raises(Rejected, match="not of 3 chunks"):
        blob(3 * CHUNK, have)


def test_a_patchy_bitmap_is_asked_for_in_ranges() -> None:
    """Only gaps are asked for, and a Get never has more ranges than it may."""
    have = bytearray(empty_bitmap(2000 * CHUNK, CHUNK))
    for index in range(0, 2000, 2):
        have[index // 8] |= 1 << index % 8
    transfer = blob(2000 * CHUNK, bytes(have))
    data = bytes(2000 * CHUNK)

    outcome = run_link(transfer, data, Link(100e6, 0.05), 1)

    assert transfer.complete and outcome.violations == []
    assert outcome.asked == 1000
    assert outcome.peak_window <= MAX_WINDOW


def test_after_a_cut_it_waits_for_what_is_still_on_its_way() -> None:
    """Late chunks are used and put the next question off; strangers do not; when none comes any more, it asks."""
    transfer = blob(10 * CHUNK, have=b"\x01\x00")
    transfer.await_late(100.0)
    assert transfer.next_get(100.1) is None

    assert transfer.on_chunk(100.15, Chunk(1, 1, DATA[CHUNK : 2 * CHUNK])) == CHUNK
    assert transfer.next_get(100.3) is None
    assert transfer.on_chunk(100.34, Chunk(2, 2, DATA[:CHUNK])) is None
    get = transfer.next_get(100.36)

    assert get is not None
    assert get.ranges == ((2, 3),)
