"""Who a rollout is for: `all`, `group:NAME` and device ids become a list of devices. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from regatta_protocol.errors import Rejected
from regatta_protocol.ids import DeviceId, parse_device_id

__all__ = ["Member", "is_for_group", "resolve"]

_GROUP_PREFIX = "group:"


@dataclass(frozen=True)
class Member:
    """A device that takes part in the fleet (not revoked), and its group."""

    device: DeviceId
    group: str


def is_for_group(to: Sequence[str], group: str) -> bool:
    """Return whether the rollout is for every device of the group, those that come later included."""
    return "all" in to or f"{_GROUP_PREFIX}{group}" in to


def resolve(to: Sequence[str], members: Collection[Member]) -> tuple[DeviceId, ...]:
    """Return the devices that `to` names, once each, sorted.

    Raises:
        Rejected: when a part names nothing that exists, or the whole names no device.
    """
    known = {member.device for member in members}
    groups = {member.group for member in members}
    chosen: set[DeviceId] = set()
    for part in to:
        if part == "all":
            chosen |= known
        elif part.startswith(_GROUP_PREFIX):
            group = part[len(_GROUP_PREFIX) :]
            if group not in groups:
                have = ", ".join(sorted(groups)) or "none"
                raise Rejected(f"no device is in group {group[:80]!r}; groups with devices: {have}")
            chosen |= {member.device for member in members if member.group == group}
        else:
            device = parse_device_id(part)
            if device not in known:
                raise Rejected(f"no device {device!r} is enrolled here (or it was revoked): see `regatta status`")
            chosen.add(device)
    if not chosen:
        raise Rejected("this rollout is for no device: enrol one first (`regatta device token`)")
    return tuple(sorted(chosen))
