"""What every reader of a file must survive: the file cut at every byte, overwritten anywhere, and noise.

A reader answers or raises Rejected; anything else that it raises fails the test.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from regatta_protocol.errors import Rejected

__all__ = ["check_mutations", "check_noise", "check_truncations", "survives"]

Reader = Callable[[bytes], object]


def survives(data: bytes, *readers: Reader) -> None:
    """Fail when a reader raises anything but Rejected."""
    for read in readers:
        with contextlib.suppress(Rejected):
            read(data)


def check_truncations(whole: bytes, *readers: Reader) -> None:
    """Cut at every byte."""
    for length in range(len(whole)):
        survives(whole[:length], *readers)


def check_mutations(whole: bytes, *readers: Reader) -> None:
    """Up to 12 bytes overwritten anywhere."""

    @settings(max_examples=300)
    @given(st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), min_size=1, max_size=12))
    def check(changes: list[tuple[int, int]]) -> None:
        data = bytearray(whole)
        for position, value in changes:
            data[position] = value
        survives(bytes(data), *readers)

    check()


def check_noise(start: bytes, *readers: Reader) -> None:
    """Up to 400 random bytes behind what a file of this format starts with."""

    @settings(max_examples=200)
    @given(st.binary(max_size=400))
    def check(noise: bytes) -> None:
        survives(start + noise, *readers)

    check()
