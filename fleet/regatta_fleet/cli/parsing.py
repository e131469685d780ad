"""Waves and gates as people write them, and click's types made of these parsers.

Pure. Every refusal says what was read and shows a right example.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import click

from regatta_protocol.errors import Rejected
from regatta_protocol.quantity import parse_duration, parse_share, parse_size_bytes

__all__ = [
    "DURATION",
    "GATE",
    "GATE_KEYS",
    "SHARE",
    "SIZE",
    "WAVES",
    "GateSetting",
    "parse_gate",
    "parse_waves",
]

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
SIZE = _Parsed("size", parse_size_bytes)
WAVES = _Parsed("shares", parse_waves)
GATE = _Parsed("key=value", parse_gate)
