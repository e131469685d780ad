"""`regatta-agent`: where it starts, and how it ends. The commands themselves are in commands.py.

`run` with nothing but its folders goes straight to the daemon (daemon.py), so that what reads command lines (click and
what it needs: 1 MB) is not kept by a process that runs for months. Everything else, `run --help` too, is click's.

Exit codes are the error families' (docs/exit-codes.md). A traceback is shown only for a bug, or with --verbose.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from regatta_agent.process.daemon import daemon_options, run_daemon
from regatta_protocol.errors import RegattaError

__all__ = ["main"]

logger = logging.getLogger(__name__)

_EX_SOFTWARE = 70  # sysexits.h: a bug of ours


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit with its documented code."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    verbose = bool({"-v", "--verbose"} & set(argv[:1]))
    options = daemon_options(argv)
    try:
        if options is None:
            from regatta_agent.cli.commands import interpret

            sys.exit(interpret(argv))
        run_daemon(options)
        sys.exit(0)
    except RegattaError as err:
        _tell(str(err), verbose)
        sys.exit(err.exit_code)
    except PermissionError as err:
        _tell(f"{err.filename} is not accessible for this user: run this as the service's user, or as root", verbose)
        sys.exit(77)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)  # as a shell reports a reader that went away
    except Exception as err:  # the top of the program: a bug
        logger.exception("event=bug error=%s", err)
        sys.exit(_EX_SOFTWARE)


def _tell(text: str, verbose: bool) -> None:
    if verbose:
        logger.exception("event=error")
    sys.stderr.write(f"error: {text}\n")
