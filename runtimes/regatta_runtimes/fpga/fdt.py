"""Device-tree blobs (.dtbo): whether one is sound, which bitstream it names, and the same blob naming another.

An overlay for a fpga-region names its bitstream in the property `firmware-name` of its `__overlay__` node, and the
kernel loads that file when the overlay is applied. (Deeper nodes may have a property of that name for a device of
their own.) Overlays are resolved by node paths and offsets inside properties, so that a value of another length breaks
no reference. Format: Devicetree Specification v0.4, chapter 5. Nothing here touches a file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from regatta_protocol.errors import Rejected

__all__ = ["bitstream_name", "with_bitstream_name"]

_MAGIC = 0xD00DFEED
_HEADER = struct.Struct(">10I")
_VERSION = 17  # what dtc writes and the kernel reads
_BEGIN_NODE, _END_NODE, _PROP, _NOP, _END = 1, 2, 3, 4, 9
_PROPERTY = b"firmware-name"
_REGION = b"__overlay__"
_ALIGNMENT = 4


class _Layout(NamedTuple):
    """The header, field by field."""

    magic: int
    total: int
    structure_at: int
    strings_at: int
    reserved_at: int
    version: int
    last_compatible: int
    boot_cpu: int
    strings_size: int
    structure_size: int


class _Value(NamedTuple):
    """Where a property's value lies in the blob."""

    at: int
    size: int


def bitstream_name(blob: bytes) -> str | None:
    """Return the file that the overlay's fpga-region shall load, or None when it names none.

    Raises:
        Rejected: when the blob is no device tree, is cut off, or names several bitstreams.
    """
    value = _named(blob)
    if value is None:
        return None
    return blob[value.at : value.at + value.size].rstrip(b"\0").decode("utf-8", "replace")


def with_bitstream_name(blob: bytes, name: str) -> bytes:
    """Return the blob with `name` as the bitstream that it names; one that names none comes back as it is.

    Raises:
        Rejected: as `bitstream_name`.
    """
    value = _named(blob)
    if value is None:
        return blob
    layout = _layout(blob)
    fresh = name.encode() + b"\0"
    old_end = value.at + _padded(value.size)
    body = fresh.ljust(_padded(len(fresh)), b"\0")
    moved = len(body) - _padded(value.size)
    # the 4 bytes before the value are the offset of the property's name, and the 4 before those its length
    patched = b"".join(
        (blob[: value.at - 8], struct.pack(">I", len(fresh)), blob[value.at - 4 : value.at], body, blob[old_end:])
    )
    header = layout._replace(
        total=layout.total + moved,
        structure_size=layout.structure_size + moved,
        strings_at=_shifted(layout.strings_at, value.at, moved),
        reserved_at=_shifted(layout.reserved_at, value.at, moved),
    )
    return _HEADER.pack(*header) + patched[_HEADER.size :]


def _shifted(offset: int, at: int, moved: int) -> int:
    return offset + moved if offset > at else offset


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _named(blob: bytes) -> _Value | None:
    """Return the one `firmware-name` of the blob."""
    found = list(_values(blob))
    if len(found) > 1:
        raise Rejected(f"the device-tree overlay names {len(found)} bitstreams: Regatta loads one, split the overlay")
    return found[0] if found else None


def _layout(blob: bytes) -> _Layout:
    """Return the header after checking that every block lies within the blob."""
    if len(blob) < _HEADER.size:
        raise Rejected(f"a device-tree overlay of {len(blob)} bytes is cut off: compile it again with dtc -@")
    layout = _Layout(*_HEADER.unpack_from(blob))
    if layout.magic != _MAGIC:
        raise Rejected(
            f"this is no compiled device-tree overlay (it begins with {layout.magic:#010x}, not {_MAGIC:#010x}): "
            "compile the source with `dtc -@ -O dtb -o overlay.dtbo overlay.dts`"
        )
    if layout.total > len(blob):
        raise Rejected(f"the device-tree overlay is cut off: {len(blob)} of {layout.total} bytes are there")
    if not layout.last_compatible <= _VERSION <= layout.version:
        raise Rejected(f"device-tree format version {layout.version} is not known: compile it with dtc 1.4 or newer")
    for name, start, size in (
        ("structure", layout.structure_at, layout.structure_size),
        ("strings", layout.strings_at, layout.strings_size),
    ):
        if start < _HEADER.size or start + size > layout.total:
            raise Rejected(f"the device-tree overlay is damaged: its {name} block lies outside of it")
    if layout.structure_at % _ALIGNMENT:
        raise Rejected("the device-tree overlay is damaged: its structure block is not aligned")
    return layout


def _values(blob: bytes) -> Iterator[_Value]:
    """Yield the values of the overlay nodes' `firmware-name`, checking the structure block on the way."""
    layout = _layout(blob)
    at, end = layout.structure_at, layout.structure_at + layout.structure_size
    nodes: list[bytes] = []
    while True:
        token, at = _word(blob, at, end)
        if token == _BEGIN_NODE:
            closing = blob.find(b"\0", at, end)
            if closing < 0:
                raise Rejected("the device-tree overlay is damaged: a node's name has no end")
            nodes.append(blob[at:closing])
            at += _padded(closing + 1 - at)
        elif token == _END_NODE and nodes:
            nodes.pop()
        elif token == _PROP and nodes:
            size, at = _word(blob, at, end)
            name_at, at = _word(blob, at, end)
            if at + size > end or name_at >= layout.strings_size:
                raise Rejected("the device-tree overlay is damaged: a property reaches beyond its block")
            text = layout.strings_at + name_at
            if nodes[-1] == _REGION and blob[text : text + len(_PROPERTY) + 1] == _PROPERTY + b"\0":
                yield _Value(at, size)
            at += _padded(size)
        elif token == _END and not nodes:
            return
        elif token != _NOP:
            raise Rejected(f"the device-tree overlay is damaged: token {token} does not belong where it stands")


def _word(blob: bytes, at: int, end: int) -> tuple[int, int]:
    """Return the number at `at` and where the next thing begins."""
    if at + 4 > end:
        raise Rejected("the device-tree overlay is damaged: its structure block has no end")
    return int.from_bytes(blob[at : at + 4], "big"), at + 4
