"""Addresses that are listened on: HOST:PORT read, and whether it is reached from this machine only. Pure."""

from __future__ import annotations

import ipaddress

__all__ = ["is_loopback", "split_address"]


def split_address(address: str) -> tuple[str, int]:
    """Return the IP address and the port of `HOST:PORT` or `[HOST]:PORT`.

    Raises:
        ValueError: when it is neither.
    """
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        ipaddress.ip_address(host)
        number = int(port)
    except ValueError as err:
        raise ValueError(f"{address!r} is no address: write HOST:PORT with an IP address, as 127.0.0.1:8000") from err
    if not 0 <= number < 65_536:
        raise ValueError(f"{address!r} has no port of 1 to 65535")
    return host, number


def is_loopback(host: str) -> bool:
    """Return whether the IP address is reached from this machine only."""
    return ipaddress.ip_address(host).is_loopback
