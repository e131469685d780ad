"""Chunks: a fixed header, and every damage noticed."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regatta_protocol.chunk import HEADER_BYTES, MAX_CHUNK_BYTES, Chunk, chunk_count, pack_chunk, unpack_chunk
from regatta_protocol.errors import Rejected

chunks = st.builds(Chunk, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.binary(max_size=300))


@given(chunks)
def test_what_is_packed_comes_out(chunk: Chunk) -> None:
    """Unpacking is the inverse of packing."""
    assert unpack_chunk(pack_chunk(chunk)) == chunk


def test_the_layout_is_the_documented_one() -> None:
    """Other programs read these bytes: they may never change under version 1."""
    assert pack_chunk(Chunk(0x01020304, 5, b"abc")).hex() == "010000000102030400000005352441c2616263"
    assert HEADER_BYTES == 16


@given(chunks, st.data())
def test_a_cut_is_noticed(chunk: Chunk, data: st.DataObject) -> None:
    """A chunk that lost its end is Rejected, wherever it was cut."""
    packed = pack_chunk(Chunk(chunk.transfer, chunk.index, b"x" + chunk.payload))

    with pytest.raises(Rejected):
        unpack_chunk(packed[: data.draw(st.integers(0, len(packed) - 1))])


@given(chunks, st.data())
def test_a_flipped_bit_of_the_payload_is_noticed(chunk: Chunk, data: st.DataObject) -> None:
    """CRC-32 finds every single-bit error."""
    packed = bytearray(pack_chunk(Chunk(chunk.transfer, chunk.index, b"x" + chunk.payload)))
    packed[data.draw(st.integers(HEADER_BYTES, len(packed) - 1))] ^= 1 << data.draw(st.integers(0, 7))

    with pytest.raises(Rejected, match="damaged"):
        unpack_chunk(bytes(packed))


@given(st.binary(max_size=200))
def test_noise_is_rejected_or_a_chunk(data: bytes) -> None:
    """No other error comes of foreign bytes."""
    with contextlib.suppress(Rejected):
        unpack_chunk(data)


def test_limits() -> None:
    """The longest payload passes; a longer one and another version are refused by name."""
    assert len(unpack_chunk(pack_chunk(Chunk(1, 2, bytes(MAX_CHUNK_BYTES)))).payload) == MAX_CHUNK_BYTES
    with pytest.raises(Rejected, match="65553 bytes"):
        unpack_chunk(pack_chunk(Chunk(1, 2, bytes(MAX_CHUNK_BYTES + 1))))
    with pytest.raises(Rejected, match="version 2"):
        unpack_chunk(b"\x02" + pack_chunk(Chunk(1, 2, b""))[1:])


@pytest.mark.parametrize(("size", "count"), [(0, 0), (1, 1), (1024, 1), (1025, 2), (10 * 1024, 10)])
def test_chunk_count(size: int, count: int) -> None:
    """The last chunk may be shorter."""
    assert chunk_count(size, 1024) == count
