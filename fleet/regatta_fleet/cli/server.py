"""`regatta up` and `regatta init`: start a fleet's server, or only make what it needs."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from regatta_fleet.cli import output
from regatta_fleet.cli.connection import examples, home_option, json_option
from regatta_protocol.errors import Misuse

if TYPE_CHECKING:
    from regatta_fleet.home import ServerInfo
    from regatta_fleet.settings import Settings

__all__ = ["init", "up"]

_PORT = click.IntRange(1, 65_535)


@click.command(
    epilog=examples(
        "regatta up",
        "regatta up --host 0.0.0.0 --advertise fleet.lan",
        "regatta up --database postgresql+psycopg://regatta@db/regatta --broker mqtts://broker.lan:8883",
    )
)
@home_option
@click.option("--host", help="The address where devices reach the broker and enrol [default: 127.0.0.1].")
@click.option("--advertise", help="The name or address that devices are told [default: kept, else --host].")
@click.option("--port", type=_PORT, help="Of the page and the API, on loopback [default: kept, else a free one].")
@click.option("--device-port", type=_PORT, help="Where devices enrol [default: kept, else a free one].")
@click.option("--broker-port", type=_PORT, help="Of the private broker [default: kept, else a free one].")
@click.option("--broker", help="mqtts://HOST:PORT of a broker that others run [default: a private Mosquitto].")
@click.option("--broker-ca", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="CA of that broker.")
@click.option("--database", help="An SQLAlchemy URL [default: SQLite in --home].")
@click.option("--verbose", "-v", is_flag=True, help="Log what happens [default: on a terminal only what is wrong].")
@json_option
def up(verbose: bool, as_json: bool, **given: object) -> None:
    """Start the fleet's server and its page; Ctrl-C ends it.

    The first start creates the fleet. With --json one line tells where everything is, once it is up.
    """
    settings = _settings(given)
    if verbose or not sys.stderr.isatty():
        logging.getLogger("regatta_fleet").setLevel(logging.INFO)
    from regatta_fleet.server import run_server

    def ready(info: ServerInfo) -> None:
        _say_ready(info, as_json)

    run_server(settings, ready)


@click.command(epilog=examples("regatta init", "regatta init --home /srv/regatta --advertise fleet.lan"))
@home_option
@click.option("--host", help="As for `regatta up`.")
@click.option("--advertise", help="As for `regatta up`.")
@json_option
def init(as_json: bool, **given: object) -> None:
    """Create a fleet: its authority, keys, database and folders.

    `regatta up` does it by itself at the first start. What is there already is kept.
    """
    settings = _settings(given)
    fleet = _create_fleet(settings)
    if as_json:
        output.print_json({"fleet": fleet, "home": str(settings.home)})
    else:
        output.line(f"fleet {fleet} is ready in {settings.home}", "good")
        output.hint("start it with `regatta up`")


def _create_fleet(settings: Settings) -> str:
    """Make what the home lacks of a fleet; returns the fleet's id."""
    from regatta_fleet.database.engine import open_database, sqlite_url
    from regatta_fleet.home import Home
    from regatta_fleet.models.blobs import BlobStore
    from regatta_provisioning.assignments import AssignmentKey
    from regatta_provisioning.authority import Authority
    from regatta_provisioning.repository import MetadataRepository

    home = Home(settings.home)
    with home.locked():
        fleet = home.load(settings).fleet
        Authority.create(home.authority, fleet)
        AssignmentKey.create(home.keys)
        MetadataRepository.create(home.metadata)
        BlobStore(home.blobs).prepare()
        open_database(settings.database or sqlite_url(home.database)).close()
    return fleet


def _settings(given: dict[str, object]) -> Settings:
    from pydantic import ValidationError

    from regatta_fleet.settings import Settings

    names = {"port": "operator_port"}
    values = {names.get(name, name): value for name, value in given.items() if value is not None}
    try:
        return Settings.model_validate(values)
    except ValidationError as err:
        first = err.errors(include_url=False, include_input=False)[0]
        option = "--" + str(first["loc"][0]).replace("operator_port", "port").replace("_", "-")
        raise Misuse(f"{option} is not valid: {first['msg'].removeprefix('Value error, ')}") from err


def _say_ready(info: ServerInfo, as_json: bool) -> None:
    page = f"{info.url}/?token={info.token}"
    if as_json:
        click.echo(f'{{"page": "{page}", "server": {info.model_dump_json()}}}')
        return
    output.line(f"fleet {info.fleet} is up", "good")
    output.line(f"  page     {page}")
    output.line(f"  devices  {info.device_url} (enrol)  {info.broker_host}:{info.broker_port} (MQTT)")
    output.hint("next: `regatta device token` for a device; Ctrl-C ends the server")
