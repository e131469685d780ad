"""The fleet's side of a transfer: it sends what was asked for within limits, and says why when it cannot."""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO

import pytest

from regatta_fleet.devices.sender import Outbound, Sender
from regatta_protocol import topics
from regatta_protocol.chunk import Chunk, unpack_chunk
from regatta_protocol.codec import decode_zlib
from regatta_protocol.errors import Rejected, Retryable
from regatta_protocol.ids import DeviceId, Digest, digest_of_bytes
from regatta_protocol.messages import Get, Response

DATA = bytes(range(256)) * 40  # ten chunks of 1 KiB
DIGEST = digest_of_bytes(DATA)
DEVICE = DeviceId("dev-1")


def get(*ranges: tuple[int, int], chunk_bytes: int = 1024) -> Get:
    return Get(transfer=7, digest=DIGEST, chunk_bytes=chunk_bytes, ranges=ranges)


def answers(request: Get, max_chunks: int = 512) -> list[Outbound]:
    return list(Sender(lambda _: io.BytesIO(DATA), max_chunks).answer(DEVICE, request))


def refusal(messages: list[Outbound]) -> Response:
    [message] = messages
    assert message.topic == topics.response(DEVICE) and message.qos == 1
    return decode_zlib(Response, message.payload)


def test_chunks_come_once_each_in_the_order_of_asking() -> None:
    """Overlapping ranges give each chunk once; the last one is shorter; all are QoS 0 on the transfer's topic."""
    messages = answers(get((8, 10), (0, 2), (1, 3)))

    chunks = [unpack_chunk(message.payload) for message in messages]
    assert [chunk.index for chunk in chunks] == [8, 9, 0, 1, 2]
    assert chunks[2] == Chunk(7, 0, DATA[:1024])
    assert {(message.topic, message.qos) for message in messages} == {(topics.chunk(DEVICE, 7), 0)}
    assert unpack_chunk(answers(get((1, 2), chunk_bytes=10_000))[0].payload).payload == DATA[10_000:]


def test_no_more_chunks_than_the_limit() -> None:
    """A device that asks for everything at once gets the first ones."""
    assert [unpack_chunk(m.payload).index for m in answers(get((0, 3), (5, 10)), max_chunks=4)] == [0, 1, 2, 5]


@pytest.mark.parametrize("wrong", [(0, 11), (5, 5), (6, 5), (-1, 2), (10, 12), (0, 2**31)])
def test_a_range_outside_of_the_blob_is_refused_whole(wrong: tuple[int, int]) -> None:
    """Nothing is sent, and the reason names range and blob."""
    response = refusal(answers(get((0, 1), wrong)))

    assert response.id == "get-7" and not response.retryable
    assert response.error is not None and f"{wrong[0]}..{wrong[1]}" in response.error and DIGEST in response.error


@pytest.mark.parametrize(
    ("problem", "retryable"),
    [
        (FileNotFoundError(2, "gone"), False),
        (Rejected("not ours"), False),
        (Retryable("busy"), True),
        (OSError(5, "Input/output error"), True),
    ],
)
def test_a_blob_that_cannot_be_read_is_said_so(problem: Exception, retryable: bool) -> None:
    """Unknown is for good; a failing disk may work later."""

    def fail(digest: Digest) -> BinaryIO:
        raise problem

    response = refusal(list(Sender(fail).answer(DEVICE, get((0, 1)))))

    assert response.id == "get-7" and response.retryable is retryable and response.error


def test_the_file_is_read_as_chunks_are_taken_and_then_closed(tmp_path: Path) -> None:
    """Taking one chunk reads one chunk; leaving off closes the file."""
    path = tmp_path / "blob"
    path.write_bytes(DATA)
    opened: list[BinaryIO] = []

    def open_blob(digest: Digest) -> BinaryIO:
        opened.append(path.open("rb", buffering=0))
        return opened[-1]

    stream = Sender(open_blob).answer(DEVICE, get((0, 10)))
    next(stream)

    assert opened[0].tell() == 1024
    stream.close()  # type: ignore[attr-defined]  # it is a generator
    assert opened[0].closed
