"""The `regatta` command: one module a command group, each imported when it is called (`--help` stays quick).

`main` is the only place that turns errors into one line on standard error and an exit code (exit_codes.py).
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Sequence

import click

from regatta_fleet.cli import exit_codes
from regatta_fleet.cli.lazy import LazyGroup
from regatta_protocol import __version__
from regatta_protocol.errors import Misuse, RegattaError

__all__ = ["main", "program"]

# Name -> (module, attribute, one line for the overview). Equal to the command's own first line: a test sees to it.
_COMMANDS = {
    "up": ("regatta_fleet.cli.server", "up", "Start the fleet's server and its page; Ctrl-C ends it."),
    "init": ("regatta_fleet.cli.server", "init", "Create a fleet: its authority, keys, database and folders."),
    "status": ("regatta_fleet.cli.status", "status", "Show devices, models and rollouts."),
    "events": ("regatta_fleet.cli.status", "events", "Show what happened in the fleet, oldest first."),
    "model": ("regatta_fleet.cli.model", "model", "Optimize, search, push, list and show models."),
    "device": ("regatta_fleet.cli.device", "device", "Enrol, list, show and revoke devices."),
    "policy": ("regatta_fleet.cli.policy", "policy", "Set what groups of devices choose their placements by."),
    "window": ("regatta_fleet.cli.window", "window", "Set when groups of devices take new versions into service."),
    "batch": ("regatta_fleet.cli.batch", "batch", "Have devices answer many records that lie on them."),
    "rollout": ("regatta_fleet.cli.rollout", "rollout", "Send a version to devices in waves, and watch its gate."),
    "demo": (
        "regatta_fleet.demo",
        "demo",
        "Run a whole fleet on this machine, from float model to inference.",
    ),
    "completion": ("regatta_fleet.cli.completion", "completion", "Print the shell's completion script."),
}

# The extra of the distribution that brings a package: a plain install is the agent alone.
_EXTRAS = {
    **dict.fromkeys(("alembic", "fastapi", "flatbuffers", "jinja2", "rich", "sqlalchemy", "uvicorn"), "fleet"),
    **dict.fromkeys(("ai_edge_quantizer", "sklearn", "yaml"), "optimize"),
    "torch": "train",
}


@click.group(
    "regatta",
    cls=LazyGroup,
    commands_by_name=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with `regatta up`, or see it all at once with `regatta demo`.",
)
@click.version_option(__version__, "-V", "--version", prog_name="regatta", message="%(prog)s %(version)s")
def program() -> None:
    """Run machine-learning models on fleets of small boards.

    Regatta optimizes a model, signs it and sends it out in waves; each device races its own accelerators, serves
    from the winner and reports what it measured; a gate promotes or rolls back by that.
    """


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")  # to standard error
    try:
        result = program.main(
            args=list(sys.argv[1:] if args is None else args), prog_name="regatta", standalone_mode=False
        )
    except click.ClickException as err:
        err.show()
        return err.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo(err=True)
        return exit_codes.INTERRUPTED
    except RegattaError as err:
        return _fail(str(err), err.exit_code, err)
    except SystemExit:
        # Outside of its standalone mode click exits by itself only when the reader (head, less) has gone, and has
        # made standard output quiet by then.
        return exit_codes.READER_GONE
    except OSError as err:
        return _fail(_os_words(err), exit_codes.STORAGE, err)
    except ModuleNotFoundError as err:
        extra = _EXTRAS.get((err.name or "").partition(".")[0])
        if extra is None:
            return _bug(err)
        return _fail(
            f"this needs {err.name}, which is not installed: pip install 'regatta-edge[{extra}]'", Misuse.exit_code, err
        )
    except Exception as err:  # noqa: BLE001 - the top of a program: nobody shall meet a traceback unasked
        return _bug(err)
    return result if isinstance(result, int) else 0


def _bug(err: Exception) -> int:
    words = f"this is a bug of Regatta ({type(err).__name__}: {err})"
    return _fail(f"{words}: {exit_codes.DEBUG_VARIABLE}=1 shows the traceback to report", exit_codes.BUG, err)


def _fail(text: str, code: int, err: BaseException) -> int:
    if os.environ.get(exit_codes.DEBUG_VARIABLE):
        traceback.print_exception(err)
    click.secho("regatta: ", err=True, nl=False, fg="red", bold=True)
    click.echo(" ".join(text.split()), err=True)
    return code


def _os_words(err: OSError) -> str:
    words = err.strerror or str(err)
    return f"{err.filename}: {words}" if err.filename else words
