"""Durations, percentages, waves and gates as people write them, and click's types made of these parsers.

Pure. Every refusal says what was read and shows a right example.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import click

from regatta_protocol.errors import Rejected

__all__ = [
    "DURATION",
    "GATE",
    "GATE_KEYS",
    "SHARE",
    "WAVES",
    "GateSetting",
    "parse_duration",
    "parse_gate",
    "parse_share",
    "parse_waves",
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

# The command line's names of GateConfig's fields.
GATE_KEYS = {
    "success-ratio": "min_success_ratio",
    "accuracy-drop": "max_accuracy_drop",
    "p99-ratio": "max_p99_ratio",
    "on-failure": "on_failure",
    "timeout": "timeout_s",
}

GateSetting = tuple[str, "float | str"]


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


def parse_waves(text: str) -> tuple[float, ...]:
    """Return the cumulative shares of `10%,50%,100%`, rising and ending with the whole.

    Raises:
        Rejected: when one is no share, they do not rise, or the last is not 100%.
    """
    shares = tuple(parse_share(part) for part in text.split(","))
    if any(later <= earlier for earlier, later in zip((0.0, *shares), shares, strict=False)):
        raise Rejected(f"waves {text[:120]!r} must rise, for example 10%,50%,100%: each is the share reached by then")
    if shares[-1] != 1.0:
        raise Rejected(f"waves {text[:120]!r} must end with 100%; choose fewer devices with --to to send to a part")
    return shares


def parse_gate(text: str) -> GateSetting:
    """Return GateConfig's field and value for `accuracy-drop=2%` or `on-failure=hold`.

    Raises:
        Rejected: when the key or the value is wrong; the text lists the keys.
    """
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals or key not in GATE_KEYS:
        raise Rejected(f"gate {text[:80]!r} is not known: write KEY=VALUE with KEY one of {', '.join(GATE_KEYS)}")
    if key == "on-failure":
        action = value.replace("-", "_")
        if action not in ("roll_back", "hold"):
            raise Rejected(f"gate on-failure is {value[:40]!r}: write on-failure=roll-back or on-failure=hold")
        return GATE_KEYS[key], action
    if key == "timeout":
        return GATE_KEYS[key], parse_duration(value)
    if key == "p99-ratio":
        if _NUMBER.fullmatch(value) is None or float(value) <= 0:
            raise Rejected(f"gate p99-ratio is {value[:40]!r}: write a number above 0, for example p99-ratio=1.5")
        return GATE_KEYS[key], float(value)
    return GATE_KEYS[key], parse_share(value)


class _Parsed(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.3 only, and 8.1 will do
    """A click type made of a parser; what is not text is a default that was parsed before."""

    def __init__(self, name: str, parse: Callable[[str], object]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> object:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except Rejected as err:
            self.fail(str(err), param, ctx)


DURATION = _Parsed("duration", parse_duration)
SHARE = _Parsed("share", parse_share)
WAVES = _Parsed("shares", parse_waves)
GATE = _Parsed("key=value", parse_gate)
