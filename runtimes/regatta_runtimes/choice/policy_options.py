"""The options by which a policy is given on a command line, for both programs: `--objective`, `--max-p99`, ….

An option that is not given stays out of what `given_policy` returns, so that a caller can lay it over another policy.
`none` takes a limit away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from regatta_protocol.errors import Rejected
from regatta_protocol.policy import Policy
from regatta_protocol.quantity import (
    parse_duration,
    parse_latency_us,
    parse_power_mw,
    parse_share,
    parse_size_bytes,
    parse_temperature_c,
)
from regatta_runtimes.choice.objective import OBJECTIVES

__all__ = ["given_policy", "options_text", "policy_options"]

F = TypeVar("F", bound=Callable[..., Any])

_NO_LIMIT = "none"
_PREFIX = "policy_"  # of the parameters' names, so that a command takes them all as **options


class _Quantity(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.3 only, and 8.1 will do
    """A quantity with its unit, or `none` where there may be no limit."""

    def __init__(self, name: str, parse: Callable[[str], float], *, may_be_none: bool = True) -> None:
        self.name = name
        self._parse = parse
        self._may_be_none = may_be_none

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> object:
        if not isinstance(value, str) or (self._may_be_none and value == _NO_LIMIT):
            return value
        try:
            return self._parse(value)
        except Rejected as err:
            self.fail(str(err), param, ctx)


class _Objective(click.Choice):  # type: ignore[type-arg]  # generic since click 8.2 only
    """An objective, written with a dash."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401
        return str(super().convert(value, param, ctx)).replace("-", "_")


@dataclass(frozen=True)
class _Option:
    """One field of the policy on the command line: its name, how it is read, and how it is written again."""

    name: str
    kind: click.ParamType  # type: ignore[type-arg]  # generic since click 8.3 only
    help: str
    text: Callable[[Any], str]


_OPTIONS = {
    "objective": _Option(
        "--objective",
        _Objective([name.replace("_", "-") for name in OBJECTIVES]),
        "What the placement is chosen by.",
        lambda value: value.replace("_", "-"),
    ),
    "max_accuracy_drop": _Option(
        "--accuracy-drop",
        _Quantity("share", parse_share, may_be_none=False),
        "How much accuracy a candidate may lose, for example 1%.",
        lambda value: f"{value * 100:.6g}%",
    ),
    "max_p99_us": _Option(
        "--max-p99",
        _Quantity("latency", parse_latency_us),
        "Greatest p99 latency, for example 5ms.",
        lambda value: f"{value / 1000:.6g}ms" if value >= 1000 else f"{value:.6g}us",
    ),
    "max_memory_bytes": _Option(
        "--max-memory",
        _Quantity("size", parse_size_bytes),
        "Greatest memory, for example 128MiB.",
        lambda value: f"{value / (1 << 20):.6g}MiB",
    ),
    "max_temperature_c": _Option(
        "--max-temperature",
        _Quantity("celsius", parse_temperature_c),
        "Greatest temperature of the board, for example 75C.",
        lambda value: f"{value:.6g}C",
    ),
    "max_power_mw": _Option(
        "--max-power",
        _Quantity("power", parse_power_mw),
        "Greatest power, for example 2.5W.",
        lambda value: f"{value / 1000:.6g}W" if value >= 1000 else f"{value:.6g}mW",
    ),
    "shadow_s": _Option(
        "--shadow",
        _Quantity("duration", parse_duration, may_be_none=False),
        "How long a new version computes a sample of the live requests beside the one that serves, for example 10m.",
        lambda value: f"{value:g}s",
    ),
    "pool_size": _Option(
        "--pool",
        click.IntRange(1, 4),
        "How many placements serve at once: the winner and the next best.",
        str,
    ),
}


def policy_options(command: F) -> F:
    """Add the options; the command takes them as `**options` and reads them with `given_policy`."""
    for field, option in reversed(_OPTIONS.items()):
        command = click.option(option.name, f"{_PREFIX}{field}", type=option.kind, help=option.help)(command)
    return command


def given_policy(options: dict[str, Any]) -> Policy:
    """Return the policy of the options; only what was given is in its `model_fields_set`."""
    given = {field: options.get(f"{_PREFIX}{field}") for field in _OPTIONS}
    fields = {field: None if value == _NO_LIMIT else value for field, value in given.items() if value is not None}
    return Policy.model_validate(fields)


def options_text(policy: Policy) -> str:
    """Return the options that set what the policy has set, `--objective energy --max-p99 5ms`."""
    parts = [
        f"{option.name} {_NO_LIMIT if value is None else option.text(value)}"
        for field, option in _OPTIONS.items()
        if field in policy.model_fields_set
        for value in (getattr(policy, field),)
    ]
    return " ".join(parts)
