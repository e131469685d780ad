"""Device-tree blobs: what names a bitstream is found and changed, and no damage gets past."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulated_fpga import device_tree
from regatta_protocol.errors import Rejected
from regatta_runtimes.fpga.fdt import bitstream_name, with_bitstream_name

BLOB = device_tree("design.bit.bin")


def test_the_regions_bitstream_is_found_and_a_devices_firmware_is_not() -> None:
    """The fixture's device has a firmware-name of its own."""
    assert bitstream_name(BLOB) == "design.bit.bin"
    assert bitstream_name(device_tree(None)) is None


@given(st.text(alphabet=st.characters(codec="ascii", exclude_characters="\0"), min_size=1, max_size=200))
def test_a_name_of_any_length_takes_the_place_and_all_else_stays(name: str) -> None:
    """There and back gives the very blob: offsets, sizes and the device's own properties are as they were."""
    changed = with_bitstream_name(BLOB, name)

    assert bitstream_name(changed) == name
    assert struct.unpack_from(">I", changed, 4)[0] == len(changed)
    assert with_bitstream_name(changed, "design.bit.bin") == BLOB


def test_a_tree_that_names_none_stays_as_it_is() -> None:
    """It follows a bitstream that is loaded by itself."""
    assert with_bitstream_name(device_tree(None), "x") == device_tree(None)


@given(st.integers(min_value=0, max_value=len(BLOB) - 1))
def test_a_cut_off_blob_is_refused(length: int) -> None:
    """Wherever it is cut."""
    with pytest.raises(Rejected):
        bitstream_name(BLOB[:length])


@given(st.integers(min_value=0, max_value=len(BLOB) - 1), st.integers(min_value=0, max_value=255))
def test_a_changed_byte_never_gives_another_error(place: int, value: int) -> None:
    """A damaged blob is refused or read, and never ends the program."""
    damaged = bytearray(BLOB)
    damaged[place] = value
    try:
        changed = with_bitstream_name(bytes(damaged), "regatta/x.bin")
    except Rejected:
        return
    assert bitstream_name(changed) in (None, "regatta/x.bin")


@pytest.mark.parametrize(
    ("blob", "words"),
    [
        (b"", "cut off"),
        (b'/dts-v1/;\n/plugin/;\n/ { compatible = "a"; };\n', "dtc -@"),
        (BLOB[:4] + struct.pack(">I", len(BLOB) + 1) + BLOB[8:], "cut off"),
        (BLOB[:20] + struct.pack(">I", 3) + BLOB[24:], "format version 3"),
        (BLOB[:32] + struct.pack(">I", len(BLOB)) + BLOB[36:], "strings block"),
        (BLOB[:56] + struct.pack(">I", 7) + BLOB[60:], "token 7"),
    ],
)
def test_what_is_wrong_is_told(blob: bytes, words: str) -> None:
    """With what to do where there is something."""
    with pytest.raises(Rejected, match=words):
        bitstream_name(blob)
