"""Which device is in which wave. Pure and deterministic.

Invariants: every device is in exactly one wave; no wave is empty; the first wave has at least one device; the
order depends only on the rollout's id and the devices' ids, so that it is another one for each rollout and no
device is always the first to be tried.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Sequence
from itertools import pairwise

from regatta_protocol.errors import Rejected
from regatta_protocol.ids import DeviceId

__all__ = ["check_shares", "plan_waves"]

_ROUNDING = 1e-9  # 0.1 * 30 is 3.0000000000000004


def check_shares(shares: Sequence[float]) -> None:
    """Refuse shares that do not grow from above 0 to 1.

    Raises:
        Rejected: when they do not.
    """
    growing = all(before < after for before, after in pairwise(shares))
    if not shares or not growing or shares[0] <= 0 or shares[-1] != 1:
        listed = ", ".join(f"{share:g}" for share in shares)
        raise Rejected(
            f"the waves ({listed}) are not cumulative shares of the devices: "
            "write growing numbers above 0 that end with 1, for example 0.1, 0.5, 1"
        )


def plan_waves(
    devices: Collection[DeviceId], shares: Sequence[float], rollout: str
) -> tuple[tuple[DeviceId, ...], ...]:
    """Return the devices of each wave; shares that add no device make no wave.

    Args:
        devices: the resolved cohort, each device once.
        shares: cumulative, as `check_shares` wants them.
        rollout: the rollout's id, which seeds the order.

    Raises:
        Rejected: when the shares are no such shares, or there is no device.
    """
    check_shares(shares)
    if not devices:
        raise Rejected("a rollout needs at least one device")
    ordered = sorted(devices, key=lambda device: (hashlib.sha256(f"{rollout}/{device}".encode()).digest(), device))
    waves: list[tuple[DeviceId, ...]] = []
    start = 0
    for share in shares:
        stop = min(len(ordered), math.ceil(share * len(ordered) - _ROUNDING))
        stop = max(stop, 1)
        if stop > start:
            waves.append(tuple(ordered[start:stop]))
            start = stop
    return tuple(waves)
