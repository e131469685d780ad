"""How a command finds its fleet: options, environment, or the file that a running server leaves in its home.

The server writes `server.json` (mode 0600) into the fleet's home while it runs. `--url` with REGATTA_TOKEN reaches
a server whose home is not on this machine.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import click

from regatta_protocol.errors import Misuse, Retryable

if TYPE_CHECKING:
    from regatta_fleet.client import FleetClient

__all__ = ["connected", "examples", "home_option", "json_option", "open_client", "url_option"]

HOME_VARIABLE = "REGATTA_HOME"
URL_VARIABLE = "REGATTA_URL"
TOKEN_VARIABLE = "REGATTA_TOKEN"  # noqa: S105 - the name of a variable

P = ParamSpec("P")
R = TypeVar("R")

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
home_option = click.option(
    "--home",
    type=click.Path(file_okay=False, path_type=Path),
    envvar=HOME_VARIABLE,
    default=None,
    help=f"The fleet's folder [env: {HOME_VARIABLE}; default: ~/.local/share/regatta].",
)
url_option = click.option(
    "--url",
    envvar=URL_VARIABLE,
    default=None,
    help=f"The server's address, if it is not the one in --home, with {TOKEN_VARIABLE} set [env: {URL_VARIABLE}].",
)


def open_client(home: Path | None, url: str | None) -> FleetClient:
    """Return a client of the fleet that the options and the environment name.

    Raises:
        Retryable: when no server runs in this home.
        Misuse: when a URL comes without a token, or server.json cannot be read.
    """
    from regatta_fleet.client import FleetClient

    token = os.environ.get(TOKEN_VARIABLE)
    if url is not None:
        if not token:
            raise Misuse(f"--url {url} needs the server's token in {TOKEN_VARIABLE}: server.json in its home holds it")
        return FleetClient(url, token)
    from regatta_fleet.home import read_server_info
    from regatta_fleet.settings import default_home

    folder = home or default_home()
    running = read_server_info(folder)
    if running is None:
        raise Retryable(f"no Regatta server runs in {folder}: start one with `regatta up`, or name its --home")
    return FleetClient(running.url, token or running.token)


def connected(command: Callable[Concatenate[FleetClient, P], R]) -> Callable[P, R]:
    """Give a command the options --home and --url, and an open client as its first argument."""

    @home_option
    @url_option
    @functools.wraps(command)
    def wrapped(*args: Any, home: Path | None, url: str | None, **kwargs: Any) -> R:  # noqa: ANN401 - click's arguments
        with open_client(home, url) as client:
            return command(client, *args, **kwargs)

    return wrapped  # type: ignore[return-value]  # click adds the options to what the caller gives


def examples(*lines: str) -> str:
    """Return an epilog of commands, one a line as written."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
