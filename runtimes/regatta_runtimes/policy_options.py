"""The options by which a policy is given on a command line, for both programs: `--objective`, `--max-p99`, ….

An option that is not given stays out of what `given_policy` returns, so that a caller can lay it over another policy.
`none` takes a limit away.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from regatta_protocol.errors import Rejected
from regatta_protocol.policy import Policy
from regatta_protocol.quantity import (
    parse_latency_us,
    parse_power_mw,
    parse_share,
    parse_size_bytes,
    parse_temperature_c,
)
from regatta_runtimes.objective import OBJECTIVES

__all__ = ["given_policy", "policy_options"]

F = TypeVar("F", bound=Callable[..., Any])

_NO_LIMIT = "none"
_PREFIX = "policy_"  # of the parameters' names, so that a command takes them all as **options


class _Quantity(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.3 only, and 8.1 will do
    """A quantity with its unit, or `none` where the limit may be taken away."""

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


_OPTIONS = {
    "objective": (
        "--objective",
        _Objective([name.replace("_", "-") for name in OBJECTIVES]),
        "What the placement is chosen by.",
    ),
    "max_accuracy_drop": (
        "--accuracy-drop",
        _Quantity("share", parse_share, may_be_none=False),
        "How much accuracy a candidate may lose, for example 1%.",
    ),
    "max_p99_us": ("--max-p99", _Quantity("latency", parse_latency_us), "Greatest p99 latency, for example 5ms."),
    "max_memory_bytes": ("--max-memory", _Quantity("size", parse_size_bytes), "Greatest memory, for example 128MiB."),
    "max_temperature_c": (
        "--max-temperature",
        _Quantity("celsius", parse_temperature_c),
        "Greatest temperature of the board, for example 75C.",
    ),
    "max_power_mw": ("--max-power", _Quantity("power", parse_power_mw), "Greatest power, for example 2.5W."),
}


def policy_options(command: F) -> F:
    """Add the options; the command takes them as `**options` and reads them with `given_policy`."""
    for field, (name, kind, text) in reversed(_OPTIONS.items()):
        command = click.option(name, f"{_PREFIX}{field}", type=kind, help=text)(command)
    return command


def given_policy(options: dict[str, Any]) -> Policy:
    """Return the policy of the options; only what was given is in its `model_fields_set`."""
    given = {field: options.get(f"{_PREFIX}{field}") for field in _OPTIONS}
    fields = {field: None if value == _NO_LIMIT else value for field, value in given.items() if value is not None}
    return Policy.model_validate(fields)
