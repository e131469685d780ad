"""Where each message travels: the topics of `rg/…`, and back from a topic to its device.

Limits that every broker (AWS IoT Core too) carries: 7 slashes, 8 filters per SUBSCRIBE, 64 KiB and a header per
message. Devices write only below `rg/d/{id}/up/` and read only `rg/d/{id}/dn/` and `rg/b/`.
"""

from __future__ import annotations

from typing import NamedTuple

from regatta_protocol.enums import StrEnum
from regatta_protocol.errors import Rejected
from regatta_protocol.ids import DeviceId, parse_device_id

__all__ = [
    "SERVER_FILTERS",
    "Up",
    "UpTopic",
    "chunk",
    "desired",
    "device_filters",
    "parse_up",
    "response",
    "up",
]


class Up(StrEnum):
    """What a device says."""

    STATE = "state"
    REPORTED = "reported"
    TELEMETRY = "telemetry"
    REQUEST = "request"
    GET = "get"


class UpTopic(NamedTuple):
    device: DeviceId
    kind: Up


SERVER_FILTERS = tuple(f"rg/d/+/up/{kind}" for kind in Up)


def up(device: DeviceId, kind: Up) -> str:
    """Return the topic on which `device` says `kind`."""
    return f"rg/d/{device}/up/{kind}"


def desired(device: DeviceId) -> str:
    """Return the retained topic of the device's desired state."""
    return f"rg/d/{device}/dn/desired"


def response(device: DeviceId) -> str:
    """Return the topic of answers to the device's requests."""
    return f"rg/d/{device}/dn/response"


def chunk(device: DeviceId, transfer: int) -> str:
    """Return the topic of the binary chunks of one transfer."""
    return f"rg/d/{device}/dn/chunk/{transfer}"


def device_filters(device: DeviceId) -> tuple[str, ...]:
    """Return what a device subscribes to."""
    return (desired(device), response(device), f"rg/d/{device}/dn/chunk/+")


def parse_up(topic: str) -> UpTopic:
    """Return who says what on `topic`.

    Raises:
        Rejected: when it is no topic that a device may write.
    """
    parts = topic.split("/")
    if len(parts) != 5 or parts[0] != "rg" or parts[1] != "d" or parts[3] != "up":
        raise Rejected(f"topic {topic[:120]!r} is none that a device writes")
    try:
        kind = Up(parts[4])
    except ValueError as err:
        raise Rejected(f"topic {topic[:120]!r} is of no known kind") from err
    return UpTopic(parse_device_id(parts[2]), kind)
