"""Frames carry plain numbers whole, and what a runner that lost its mind may send is refused."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from regatta_agent.serving.frames import Channel, Kind
from regatta_agent.serving.tensors import Array
from regatta_protocol.errors import Rejected

DTYPES = st.sampled_from(["float32", "float64", "float16", "int8", "uint8", "int32", "int64", "bool"])
ARRAYS = DTYPES.flatmap(
    lambda dtype: arrays_of.arrays(dtype, arrays_of.array_shapes(min_dims=0, max_dims=5, min_side=0))
)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


@given(st.lists(ARRAYS, max_size=3), st.binary(max_size=100))
def test_what_is_sent_is_what_comes(arrays: list[Array], text: bytes) -> None:
    """Bits, dtype and shape of every array, scalars and empty ones too."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        Channel(ours).send(Kind.RUN, text, arrays, 5.0)
        frame = Channel(theirs).receive(5.0)

    assert (frame.kind, frame.text) == (Kind.RUN, text)
    assert [(one.dtype, one.shape, one.tobytes()) for one in frame.arrays] == [
        (one.dtype, one.shape, one.tobytes()) for one in arrays
    ]


def test_a_frame_larger_than_the_socket_s_buffer_comes_whole(ends: tuple[socket.socket, socket.socket]) -> None:
    """Sent in pieces while the other side reads."""
    big = np.arange(4_000_000, dtype=np.float32)
    sender = threading.Thread(target=lambda: Channel(ends[0]).send(Kind.OUTPUTS, b"1", [big, big[::2]], 10.0))
    sender.start()
    frame = Channel(ends[1]).receive(10.0)
    sender.join(10.0)

    np.testing.assert_array_equal(frame.arrays[0], big)
    np.testing.assert_array_equal(frame.arrays[1], big[::2])


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<BIH", 99, 0, 0),
        struct.pack("<BIH", 4, 1 << 30, 0),
        struct.pack("<BIH", 4, 0, 9999),
        struct.pack("<BIH4sB8q", 4, 0, 1, b"|O8", 1, 1, *[0] * 7),
        struct.pack("<BIH4sB8q", 4, 0, 1, b"<f4", 2, 1 << 40, 1 << 40, *[0] * 6),
        struct.pack("<BIH4sB8q", 4, 0, 1, b"<f4", 1, -4, *[0] * 7),
        struct.pack("<BIH4sB8q", 4, 0, 1, b"<f3", 1, 1, *[0] * 7),
        struct.pack("<BIH4sB8q", 4, 0, 1, b"<f4", 99, 1, *[0] * 7),
    ],
)
def test_what_is_no_frame_is_refused(ends: tuple[socket.socket, socket.socket], data: bytes) -> None:
    """Unknown kinds, objects, and sizes that would eat the memory."""
    ends[0].sendall(data)

    with pytest.raises(Rejected):
        Channel(ends[1]).receive(1.0)


def test_silence_and_the_end_are_told_apart(ends: tuple[socket.socket, socket.socket]) -> None:
    """No answer in time is a timeout; a closed socket is the end, in the middle of a frame too."""
    with pytest.raises(TimeoutError):
        Channel(ends[1]).receive(0.05)
    ends[0].sendall(b"\x04\x00")
    ends[0].close()
    with pytest.raises(EOFError):
        Channel(ends[1]).receive(1.0)


def test_text_tensors_are_not_passed(ends: tuple[socket.socket, socket.socket]) -> None:
    """Only plain numbers are, and nothing is on the wire after the refusal."""
    with pytest.raises(Rejected, match="cannot be passed"):
        Channel(ends[0]).send(Kind.RUN, b"", [np.array([b"text"], dtype=object)])
    with pytest.raises(TimeoutError):
        Channel(ends[1]).receive(0.05)
