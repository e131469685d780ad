"""Quantities as people write them: durations, shares, latencies, sizes, temperatures and power. Pure.

Every refusal says what was read and shows a right example. Both programs' command lines read with these.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from regatta_protocol.errors import Rejected

__all__ = [
    "parse_duration",
    "parse_latency_us",
    "parse_power_mw",
    "parse_share",
    "parse_size_bytes",
    "parse_temperature_c",
]

_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_UNIT_NAMES = {
    **{name: unit for unit in _UNIT_S for name in (unit,)},
    **dict.fromkeys(("millisecond", "milliseconds"), "ms"),
    **dict.fromkeys(("sec", "secs", "second", "seconds"), "s"),
    **dict.fromkeys(("min", "mins", "minute", "minutes"), "m"),
    **dict.fromkeys(("hr", "hrs", "hour", "hours"), "h"),
    **dict.fromkeys(("day", "days"), "d"),
    **dict.fromkeys(("week", "weeks"), "w"),
}
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)\s*")
_NUMBER = re.compile(r"\d+(?:\.\d+)?|\.\d+")
_MEASURED = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*([^\d\s.]*)")
_LATENCY_US = {"us": 1.0, "µs": 1.0, "μs": 1.0, "ms": 1e3, "s": 1e6}
_POWER_MW = {"mw": 1.0, "w": 1e3}
_SIZE_BYTES = {
    "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": float(1 << 10), "mib": float(1 << 20), "gib": float(1 << 30)
}  # fmt: skip
_ABSOLUTE_ZERO_C = -273.15


def parse_duration(text: str) -> float:
    """Return the seconds of `90`, `90s`, `500ms`, `1h30m`, `2 days`.

    Raises:
        Rejected: when it is no duration.
    """
    rest, total_s, found = text.strip().lower(), 0.0, 0
    while rest:
        match = _DURATION_PART.match(rest)
        unit = _UNIT_NAMES.get(match[2] or "s") if match else None
        if match is None or unit is None or (not match[2] and (found or match.end() < len(rest))):
            found = 0
            break
        total_s += float(match[1]) * _UNIT_S[unit]
        rest, found = rest[match.end() :], found + 1
    if not found:
        raise Rejected(f"{text[:60]!r} is no duration: write for example 90s, 5m, 1h30m or 2d")
    return total_s


def parse_share(text: str) -> float:
    """Return the share in [0, 1] of `10%`, `10 %` or `0.1`.

    Raises:
        Rejected: when it is no share. A bare number above 1 is refused, as it may be meant either way.
    """
    plain = text.strip()
    percent = plain.endswith("%")
    number = plain[:-1].strip() if percent else plain
    if _NUMBER.fullmatch(number) is None:
        raise Rejected(f"{text[:60]!r} is no share: write for example 10% or 0.1")
    value = float(number) / 100 if percent else float(number)
    if value > 1:
        hint = f"write {number}% if you mean percent" if not percent and value <= 100 else "the whole is 100%"
        raise Rejected(f"{text[:60]!r} is more than the whole: {hint}")
    return value


def parse_latency_us(text: str) -> float:
    """Return the microseconds of `500us`, `5ms` or `0.2 s`.

    Raises:
        Rejected: when it is no latency above 0, or its unit is missing.
    """
    return _parse_measured(text, _LATENCY_US, "latency", "500us, 5ms or 0.2s")


def parse_power_mw(text: str) -> float:
    """Return the milliwatts of `2500mW` or `2.5 W`.

    Raises:
        Rejected: when it is no power above 0, or its unit is missing.
    """
    return _parse_measured(text, _POWER_MW, "power", "2500mW or 2.5W")


def parse_size_bytes(text: str) -> int:
    """Return the bytes of `64MiB`, `50 MB` or `1GiB`.

    Raises:
        Rejected: when it is no size of at least one byte, or its unit is missing.
    """
    return int(_parse_measured(text, _SIZE_BYTES, "size", "64MiB, 50MB or 1GiB"))


def parse_temperature_c(text: str) -> float:
    """Return the degrees Celsius of `75`, `75C` or `75 °C`.

    Raises:
        Rejected: when it is no temperature above absolute zero.
    """
    plain = text.strip().lower().removesuffix("c").removesuffix("°").strip()
    try:
        value = float(plain)
    except ValueError:
        value = float("nan")
    if not _ABSOLUTE_ZERO_C < value < float("inf"):
        raise Rejected(f"{text[:60]!r} is no temperature in degrees Celsius: write for example 75C")
    return value


def _parse_measured(text: str, units: Mapping[str, float], what: str, examples: str) -> float:
    match = _MEASURED.fullmatch(text.strip().lower())
    factor = units.get(match[2]) if match else None
    value = float(match[1]) * factor if match and factor is not None else 0.0
    if value <= 0 or (units is _SIZE_BYTES and value < 1):
        raise Rejected(f"{text[:60]!r} is no {what}: write a number with its unit, for example {examples}")
    return value
