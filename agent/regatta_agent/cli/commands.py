"""The commands of `regatta-agent`, read by click. Each command's module is imported when it is called."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Sequence

import click

from regatta_protocol import __version__

__all__ = ["COMMANDS", "cli", "interpret"]

COMMANDS = {  # name -> (module, attribute, what it does): so that --help imports none of them
    "batch": ("regatta_agent.cli.batch", "batch", "Answer many records into a file, surviving kills."),
    "config": ("regatta_agent.cli.settings", "config", "Check the settings."),
    "doctor": ("regatta_agent.cli.doctor", "doctor", "Examine the board, and say what is missing and how to get it."),
    "enroll": ("regatta_agent.cli.enroll", "enroll", "Join a fleet with a one-time token."),
    "infer": ("regatta_agent.cli.infer", "infer", "Ask a served model for an answer."),
    "install": ("regatta_agent.cli.install", "install", "Install the service on this machine."),
    "pipeline": ("regatta_agent.cli.pipeline", "pipeline", "Answer frames of cameras, folders and topics."),
    "quarantine": ("regatta_agent.cli.quarantine", "quarantine", "Show what crashed here, or try it again."),
    "race": ("regatta_agent.cli.race", "race", "Race every way of running a model file on this board."),
    "renew": ("regatta_agent.cli.enroll", "renew", "Renew this device's certificate."),
    "run": ("regatta_agent.cli.run", "run", "Run the agent until SIGTERM or Ctrl-C."),
    "states": ("regatta_agent.cli.settings", "states", "Print the states of a version as a diagram."),
    "status": ("regatta_agent.cli.status", "status", "Show this device and where every version stands."),
    "uninstall": ("regatta_agent.cli.install", "uninstall", "Undo what install did."),
    "why": ("regatta_agent.cli.why", "why", "Explain the choice of a model's placement."),
}

_EX_IOERR = 74  # sysexits.h
_READER_GONE = 141  # 128 + SIGPIPE, as a shell reports it


class _LazyGroup(click.Group):
    """A group that knows its commands by name and imports the one that is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(module), attribute)
        return command if isinstance(command, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][2]) for name in self.list_commands(ctx)])


@click.group(
    "regatta-agent",
    cls=_LazyGroup,
    commands={name: click.Command(name) for name in COMMANDS},  # by which click guesses what a mistyped one means
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, "-V", "--version", prog_name="regatta-agent", message="%(prog)s %(version)s")
@click.option("--verbose", "-v", is_flag=True, help="Show debug messages, and tracebacks of errors.")
@click.pass_context
def cli(ctx: click.Context, verbose: bool) -> None:
    """Serve machine-learning models on this board, as its fleet wants.

    \b
    Examples:
      regatta-agent enroll TOKEN
      regatta-agent run
      regatta-agent status
      regatta-agent why digits
      regatta-agent race model.tflite
    """
    ctx.obj = verbose
    if verbose:
        logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)


def interpret(argv: Sequence[str]) -> int:
    """Run the command of a command line and return its exit status; our own errors pass through."""
    try:
        status = cli.main(args=list(argv), prog_name="regatta-agent", standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("interrupted", err=True)
        return 130
    except click.ClickException as err:
        err.show()
        return err.exit_code
    except SystemExit:
        # Outside of its standalone mode click exits by itself only when the reader (head, less) has gone, and has
        # made standard output quiet by then.
        return _READER_GONE
    except (BrokenPipeError, PermissionError):
        raise  # they have codes of their own
    except OSError as err:
        named = f"{err.filename}: " if err.filename else ""
        click.echo(f"error: {named}{err.strerror or err}", err=True)
        return _EX_IOERR
    return status if isinstance(status, int) else 0
