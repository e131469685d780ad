"""What the `regatta` command says of itself: help, completion, and what is wrong with a command line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from fleet_command import DEADLINE_S, output
from regatta_fleet.cli import exit_codes, main, program


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each shell gets a script that asks this program."""
    assert "_REGATTA_COMPLETE" in output(capsys, "completion", shell)


def test_completion_answers() -> None:
    """`regatta roll<TAB>` completes without importing the command."""
    environment = {**os.environ, "_REGATTA_COMPLETE": "bash_complete", "COMP_WORDS": "regatta roll", "COMP_CWORD": "1"}

    done = subprocess.run(
        [sys.executable, "-c", "from regatta_fleet.cli import main; main([])"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )

    assert done.stdout.split() == ["plain,rollout"]


def test_help_imports_nothing_heavy() -> None:
    """`regatta --help` stays quick: no pydantic, requests, rich or server is loaded (measured: 0.1 s)."""
    code = (
        "import sys; from regatta_fleet.cli import main; main(['--help']); "
        "heavy = {'pydantic', 'requests', 'rich', 'fastapi', 'numpy', 'sqlalchemy', 'jinja2'} & set(sys.modules); "
        "sys.exit(','.join(heavy) or 0)"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE_S)

    assert done.returncode == 0, done.stderr
    assert "rollout" in done.stdout


def _commands(group: click.Group, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group, info_name=path[-1] if path else "regatta")
    for name in group.list_commands(context):
        if name == "demo":
            continue  # the demo comes with its own tests
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from _commands(command, *path, name)


COMMANDS = list(_commands(program))


@pytest.mark.parametrize("path", [path for path, _ in COMMANDS], ids=" ".join)
def test_every_command_explains_itself(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """--help works, and every command that does something has examples and, where it prints results, --json."""
    command = dict(COMMANDS)[path]

    text = output(capsys, *path, "--help")

    assert command.help
    if not isinstance(command, click.Group):
        assert "Examples:" in text
        assert "--json" in text or path == ("completion",)
        assert all(option.help for option in command.params if isinstance(option, click.Option))


@pytest.mark.parametrize(("typed", "meant"), [("rolout start", "rollout"), ("device shw", "show")])
def test_a_mistyped_command_is_told_what_it_may_mean(
    typed: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the top, and within a group."""
    assert main(typed.split()) == 2
    assert f"Did you mean '{meant}'?" in capsys.readouterr().err


def test_the_overview_says_what_the_commands_say() -> None:
    """The lines that `regatta --help` shows without importing are the commands' own."""
    from regatta_fleet.cli import _COMMANDS

    for path, command in COMMANDS:
        if len(path) == 1:
            assert (command.help or "").splitlines()[0] == _COMMANDS[path[0]][2]


def test_wrong_usage_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown command or option is named."""
    assert main(["rolout"]) == exit_codes.USAGE
    assert main(["status", "--jason"]) == exit_codes.USAGE
    assert "--jason" in capsys.readouterr().err
