"""The reference page of a click program, as Markdown: every command, option, example, and what it may end with.

A test compares the page with the program, so neither can change alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping

import click

__all__ = ["commands", "page", "regatta_page"]

_INTRODUCTION = """\
# `regatta`: the fleet's command line

This page is made from the program (`./run docs`); a test keeps them equal.
On the device there is another program, [`regatta-agent`](agent-cli.md).

- Results go to standard output, hints and progress to standard error. Tables have color on a terminal only.
- `--json` prints the API's own shapes (`/docs` of a running server describes them).
- Durations are `90s`, `5m`, `1h30m`, `2d` or a number of seconds; shares are `10%` or `0.1`.
- Commands find the server by the `server.json` in its home while `regatta up` runs there.
"""

_ENVIRONMENT = {
    "REGATTA_HOME": "The fleet's folder, as `--home`.",
    "REGATTA_URL": "The server's address, as `--url`, where its home is not on this machine.",
    "REGATTA_TOKEN": "The server's token, as in `server.json`; needed with `REGATTA_URL`.",
    "REGATTA_DEBUG": "`1` shows the traceback of every error.",
    "NO_COLOR": "Anything turns color off.",
}


def page(program: click.Group, introduction: str, environment: Mapping[str, str], codes: Mapping[int, str]) -> str:
    """Return the whole page of a program."""
    parts = [introduction.rstrip(), "", *_synopsis(program)]
    for path, command in commands(program):
        parts += ["", *_chapter(path, command)]
    parts += ["", "## Environment", "", "| variable | meaning |", "|---|---|"]
    parts += [f"| `{name}` | {text} |" for name, text in environment.items()]
    parts += ["", "## Exit codes", "", "| code | meaning |", "|--:|---|"]
    parts += [f"| {code} | {text} |" for code, text in codes.items()]
    return "\n".join(parts) + "\n"


def regatta_page() -> str:
    """Return docs/cli.md."""
    from regatta_fleet.cli import exit_codes, program

    return page(program, _INTRODUCTION, _ENVIRONMENT, exit_codes.MEANINGS)


def commands(group: click.Group, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield every command below the group with its path, groups before their commands."""
    path = path or (group.name or "",)
    context = click.Context(group, info_name=path[-1])
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)


def _synopsis(program: click.Group) -> list[str]:
    lines = ["| command | |", "|---|---|"]
    for path, command in commands(program):
        if not isinstance(command, click.Group):
            name = " ".join(path)
            lines.append(f"| [`{name}`](#{'-'.join(path)}) | {_first_line(command)} |")
    return lines


def _chapter(path: tuple[str, ...], command: click.Command) -> list[str]:
    name = " ".join(path)
    if isinstance(command, click.Group):
        return [f"## {name}", "", _first_line(command)]
    context = click.Context(command, info_name=name)
    level = "##" if len(path) == 2 else "###"
    lines = [f"{level} {name}", "", "```", *_usage(context, name), "```", "", _prose(command.help or "")]
    options = [option for option in command.params if isinstance(option, click.Option) and not option.hidden]
    if options:
        lines += ["", "| option | meaning |", "|---|---|"]
        lines += [_option_row(option, context) for option in options]
    if command.epilog:
        shown = [line.strip() for line in command.epilog.splitlines() if line.startswith("  ")]
        lines += ["", "```sh", *shown, "```"]
    return lines


def _usage(context: click.Context, name: str) -> list[str]:
    return [" ".join([name, *context.command.collect_usage_pieces(context)])]


def _option_row(option: click.Option, context: click.Context) -> str:
    record = option.get_help_record(context)
    assert record is not None
    return f"| `{_cell(record[0])}` | {_cell(record[1])} |"


def _prose(text: str) -> str:
    """Return the paragraphs, each on one line; those that click keeps as they are (\\b) become their commands."""
    return "\n\n".join(_paragraph(paragraph) for paragraph in inspect.cleandoc(text).split("\n\n"))


def _paragraph(text: str) -> str:
    if not text.startswith("\b\n"):
        return " ".join(text.split())
    shown = [line.strip() for line in text.splitlines() if line.startswith("  ")]
    return "\n".join(["```sh", *shown, "```"])


def _first_line(command: click.Command) -> str:
    return _prose(command.help or "").split("\n\n")[0]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
