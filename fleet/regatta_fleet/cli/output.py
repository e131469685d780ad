"""What commands print: tables and progress in color on a terminal, plain text elsewhere, or one JSON document.

Results go to standard output, everything else (hints, progress) to standard error, so that scripts read clean
text. Whatever came from a device or a model has its control characters taken out on the way.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import click

from regatta_fleet import figures

if TYPE_CHECKING:
    from pydantic import BaseModel

__all__ = [
    "Cell",
    "Column",
    "Meter",
    "Progress",
    "Table",
    "hint",
    "line",
    "meter",
    "plain",
    "print_json",
    "print_table",
    "render",
    "steps",
]

Progress = Callable[[str, float], None]
Style = Literal["", "good", "bad", "dim", "warn", "heading"]
_COLORS: dict[Style, str] = {
    "good": "green",
    "bad": "red",
    "dim": "bright_black",
    "warn": "yellow",
}
_GAP = "  "
_INDENT = 4  # of what stands below its row
_LEAST_WIDE = 24  # characters; a narrower column of sentences is hard to read


@dataclass(frozen=True)
class Cell:
    """One field of a table."""

    text: str
    style: Style = ""


@dataclass(frozen=True)
class Column:
    """A heading; figures are aligned right.

    On a terminal that is too narrow, columns with `leave_out` go first (1 before 2, 0 stays), and a last column that
    is `wide` is wrapped, or put below its row.
    """

    name: str
    right: bool = False
    wide: bool = False
    leave_out: int = 0


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
    click.echo(_styled(figures.printable(text), style))


def hint(text: str) -> None:
    """Print one line for the person, on standard error."""
    click.echo(figures.printable(text), err=True)


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
    left_out: list[str] = []
    if table.rows:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        text, left_out = render(table, width)
        for one in text:
            click.echo(one)
    for note in table.notes:
        line(f"  {note}", "dim")
    if left_out:
        line(f"  not shown on this narrow terminal: {', '.join(left_out)}; --json has all", "dim")


def render(table: Table, width: int | None) -> tuple[list[str], list[str]]:
    """Return the table's lines, and the names of the columns that were left out to fit into `width` characters."""
    rows = [tuple(_clean(cell) for cell in row) for row in table.rows]
    widths = [
        max(len(column.name), *(len(row[place].text) for row in rows)) for place, column in enumerate(table.columns)
    ]
    shown = list(range(len(table.columns)))
    if width is not None and not any(row[-1].text for row in rows):
        shown.pop()  # no row has a reason to give
    last = shown[-1] if table.columns[shown[-1]].wide else None

    def needed() -> int:
        least = (min(widths[place], _LEAST_WIDE) if place == last else widths[place] for place in shown)
        return sum(least) + len(_GAP) * (len(shown) - 1)

    left_out: list[str] = []
    for place in sorted(shown, key=lambda place: table.columns[place].leave_out):
        if width is not None and table.columns[place].leave_out and needed() > width:
            shown.remove(place)
            left_out.append(table.columns[place].name)
    below = width is not None and last is not None and needed() > width
    if below and last is not None:
        shown.remove(last)
    headings = tuple(Cell(column.name, "heading") for column in table.columns)
    lines = []
    for row in (headings, *rows):
        before = [_padded(row[place], widths[place], table.columns[place].right) for place in shown if place != last]
        indent = _INDENT if below else sum(widths[place] + len(_GAP) for place in shown if place != last)
        tail = [] if last is None else _wrapped(row[last], None if width is None else width - indent)
        if last is None or (below and (row is headings or not row[last].text)):
            lines.append(_GAP.join(before).rstrip())
        elif below:
            lines += [_GAP.join(before).rstrip(), *(" " * indent + one for one in tail)]
        else:
            lines.append(_GAP.join([*before, tail[0]]).rstrip())
            lines += [" " * indent + one for one in tail[1:]]
    return lines, left_out


def _clean(cell: Cell | str) -> Cell:
    known = cell if isinstance(cell, Cell) else Cell(cell)
    return Cell(figures.one_line(known.text), known.style)


def _padded(cell: Cell, width: int, right: bool) -> str:
    spaces = " " * (width - len(cell.text))
    text = _styled(cell.text, cell.style)
    return spaces + text if right else text + spaces


def _wrapped(cell: Cell, width: int | None) -> list[str]:
    """Return the cell as lines of at most `width` characters; at least one line."""
    parts = [cell.text] if width is None else textwrap.wrap(cell.text, max(width, _LEAST_WIDE)) or [""]
    return [_styled(part, cell.style) for part in parts]


def _styled(text: str, style: Style) -> str:
    """Return the text in its color; click takes colors out where standard output is no terminal."""
    if not text or style == "" or "NO_COLOR" in os.environ:
        return text
    return click.style(text, bold=True) if style == "heading" else click.style(text, fg=_COLORS[style])


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


@contextmanager
def steps() -> Iterator[Progress]:
    """Give a listener to a long work's steps, with their share in [0, 1]: a bar on a terminal, else a line a step."""
    if not sys.stderr.isatty():
        yield _step_lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=1.0)
        reached = 0.0

        def show(message: str, share: float) -> None:
            nonlocal reached
            reached = max(reached, share)  # a step's own share counts from its beginning
            progress.update(task, description=figures.printable(message), completed=reached)

        yield show


def _step_lines() -> Progress:
    last = ""
    reached = 0.0

    def say(message: str, share: float) -> None:
        nonlocal last, reached
        reached = max(reached, share)
        if message != last and share < 1:  # what came out is told by the caller
            hint(f"[{reached * 100:3.0f} %] {message}")
            last = message

    return say
