"""`regatta-agent`: the commands on a device. Each command's module is imported when it is called.

Exit codes are the error families' (docs/exit-codes.md). A traceback is shown only for a bug, or with --verbose.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Sequence

import click

from regatta_protocol import __version__
from regatta_protocol.errors import RegattaError

__all__ = ["COMMANDS", "cli", "main"]

logger = logging.getLogger(__name__)

_EX_SOFTWARE = 70  # sysexits.h: a bug of ours

COMMANDS = {  # name -> (module, attribute, what it does): so that --help imports none of them
    "batch": ("regatta_agent.cli.batch", "batch", "Answer many records into a file, surviving kills."),
    "config": ("regatta_agent.cli.settings", "config", "Check the settings."),
    "doctor": ("regatta_agent.cli.doctor", "doctor", "Examine the board, and say what is missing and how to get it."),
    "enroll": ("regatta_agent.cli.enroll", "enroll", "Join a fleet with a one-time token."),
    "infer": ("regatta_agent.cli.infer", "infer", "Ask a served model for an answer."),
    "install": ("regatta_agent.cli.install", "install", "Install the service on this machine."),
    "quarantine": ("regatta_agent.cli.quarantine", "quarantine", "Show what crashed here, or try it again."),
    "race": ("regatta_agent.cli.race", "race", "Race every way of running a model file on this board."),
    "run": ("regatta_agent.cli.run", "run", "Run the agent until SIGTERM or Ctrl-C."),
    "states": ("regatta_agent.cli.settings", "states", "Print the states of a version as a diagram."),
    "status": ("regatta_agent.cli.status", "status", "Show this device and where every version stands."),
    "uninstall": ("regatta_agent.cli.install", "uninstall", "Undo what install did."),
    "why": ("regatta_agent.cli.why", "why", "Explain the choice of a model's placement."),
}


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
    "regatta-agent", cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="regatta-agent")
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit with its documented code."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    verbose = bool({"-v", "--verbose"} & set(argv[:1]))
    try:
        status = cli.main(args=argv, prog_name="regatta-agent", standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except click.exceptions.Abort:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except click.ClickException as err:
        err.show()
        sys.exit(err.exit_code)
    except RegattaError as err:
        _tell(str(err), verbose)
        sys.exit(err.exit_code)
    except PermissionError as err:
        _tell(f"{err.filename} is not accessible for this user: run this as the service's user, or as root", verbose)
        sys.exit(77)
    except BrokenPipeError:
        sys.exit(141)  # as a shell reports a reader that went away
    except Exception as err:  # the top of the program: a bug
        logger.exception("event=bug error=%s", err)
        sys.exit(_EX_SOFTWARE)


def _tell(text: str, verbose: bool) -> None:
    if verbose:
        logger.exception("event=error")
    click.echo(f"error: {text}", err=True)
