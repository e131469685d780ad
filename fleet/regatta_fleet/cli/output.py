"""What commands print: tables and progress in color on a terminal, plain text elsewhere, or one JSON document.

Results go to standard output, everything else (hints, progress) to standard error, so that scripts read clean
text. Whatever came from a device or a model has its control characters taken out on the way.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import click

from regatta_fleet import figures

if TYPE_CHECKING:
    from pydantic import BaseModel

__all__ = ["Cell", "Column", "Meter", "Table", "hint", "line", "meter", "plain", "print_json", "print_table"]

Style = Literal["", "good", "bad", "dim", "warn"]
_RICH_STYLES: dict[Style, str] = {"": "", "good": "green", "bad": "red", "dim": "bright_black", "warn": "yellow"}
_CLICK_COLORS: dict[Style, str | None] = {
    "": None,
    "good": "green",
    "bad": "red",
    "dim": "bright_black",
    "warn": "yellow",
}


@dataclass(frozen=True)
class Cell:
    """One field of a table."""

    text: str
    style: Style = ""


@dataclass(frozen=True)
class Column:
    """A heading; figures are aligned right. A `wide` column may be wrapped on a narrow terminal."""

    name: str
    right: bool = False
    wide: bool = False


@dataclass(frozen=True)
class Table:
    """A table with its caption; without rows, `empty` is said in its place."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell | str, ...], ...]
    title: str = ""
    empty: str = ""
    notes: tuple[str, ...] = field(default=())


class Meter(Protocol):
    """Progress of one long piece of work."""

    def advance(self, amount: int) -> None: ...


def line(text: str = "", style: Style = "") -> None:
    """Print one line of the result."""
    click.secho(figures.one_line(text, 100_000) if text else "", fg=_CLICK_COLORS[style])


def hint(text: str) -> None:
    """Print one line for the person, on standard error."""
    click.secho(figures.one_line(text, 100_000), err=True, fg=None)


def print_json(value: BaseModel | Sequence[BaseModel] | dict[str, object]) -> None:
    """Print one JSON document."""
    if isinstance(value, dict):
        document: object = value
    elif isinstance(value, Sequence):
        document = [plain(one) for one in value]
    else:
        document = plain(value)
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def plain(value: BaseModel) -> dict[str, object]:
    """Return the model as JSON's own types."""
    return value.model_dump(mode="json")


def print_table(table: Table) -> None:
    """Print the table, then its notes and an empty line."""
    if table.title:
        line(table.title)
    if not table.rows:
        line(f"  {table.empty or 'none'}", "dim")
    elif sys.stdout.isatty():
        _print_rich(table)
    else:
        _print_plain(table)
    for note in table.notes:
        line(f"  {note}", "dim")


def _cells(row: tuple[Cell | str, ...]) -> list[Cell]:
    cells = [cell if isinstance(cell, Cell) else Cell(cell) for cell in row]
    return [Cell(figures.one_line(cell.text), cell.style) for cell in cells]


def _print_rich(table: Table) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column in table.columns:
        shown.add_column(
            Text(column.name),
            justify="right" if column.right else "left",
            no_wrap=not column.wide,
            overflow="fold",
        )
    for row in table.rows:
        # Text, not markup: a device named "[red]" is shown as it is called.
        shown.add_row(*(Text(cell.text, style=_RICH_STYLES[cell.style]) for cell in _cells(row)))
    Console(highlight=False).print(shown)


def _print_plain(table: Table) -> None:
    rows = [[column.name for column in table.columns], *([cell.text for cell in _cells(row)] for row in table.rows)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.columns))]
    for row in rows:
        parts = (
            text.rjust(width) if column.right else text.ljust(width)
            for text, width, column in zip(row, widths, table.columns, strict=True)
        )
        click.echo("  ".join(parts).rstrip())


class _Silent:
    def advance(self, amount: int) -> None:
        """Say nothing: standard error is no terminal."""


@contextmanager
def meter(label: str, total: int) -> Iterator[Meter]:
    """Show how far `label` has come, in bytes, on a terminal; elsewhere one line when it begins."""
    if not sys.stderr.isatty():
        hint(f"{label} ({figures.size(total)})")
        yield _Silent()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(label, total=total)

        class _Bar:
            def advance(self, amount: int) -> None:
                progress.update(task, advance=amount)

        yield _Bar()
