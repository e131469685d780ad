"""The options that commands share, and how they are answered: where state lies, and text or JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from regatta_protocol.errors import Misuse

__all__ = ["as_json", "check_state_folder", "config_option", "folder_options", "print_json", "print_table"]

F = TypeVar("F", bound=Callable[..., Any])


def folder_options(command: F) -> F:
    """Add --config, --state-dir and --run-dir."""
    for decorate in (
        click.option("--run-dir", type=click.Path(path_type=Path), help="Where sockets are. [/run/regatta-agent]"),
        click.option(
            "--state-dir", type=click.Path(path_type=Path), help="Where state is kept. [/var/lib/regatta-agent]"
        ),
        config_option,
    ):
        command = decorate(command)
    return command


def config_option(command: F) -> F:
    """Add --config."""
    return click.option(
        "--config",
        "config_path",
        type=click.Path(path_type=Path),
        help="The settings file. [/etc/regatta/agent.toml]",
    )(command)


def as_json(command: F) -> F:
    """Add --json."""
    return click.option("--json", "json_output", is_flag=True, help="Print one JSON document instead of text.")(command)


def check_state_folder(state_dir: Path) -> None:
    """Refuse to answer from a folder that is not there.

    Raises:
        Misuse: when it is not.
    """
    if not state_dir.is_dir():
        raise Misuse(f"there is no state in {state_dir}: enroll this device first, or give --state-dir")


def print_json(value: object) -> None:
    """Print a JSON document."""
    click.echo(json.dumps(value, indent=2, sort_keys=False))


def print_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print aligned columns; those whose cells are all numbers to the right."""
    table = [tuple(row) for row in rows]
    widths = [max(len(line[i]) for line in [tuple(headers), *table]) for i in range(len(headers))]
    right = [bool(table) and all(_is_number(row[i]) for row in table) for i in range(len(headers))]
    for line in [tuple(headers), *table]:
        cells = [cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(line, widths, right, strict=True)]
        click.echo("  ".join(cells).rstrip())


def _is_number(text: str) -> bool:
    return text in ("", "-") or text.replace(".", "", 1).replace("%", "").replace(",", "").lstrip("-").isdigit()
