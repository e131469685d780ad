"""`regatta status` and `regatta events`: the fleet as it is, and what happened in it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import click

from regatta_fleet import figures
from regatta_fleet.cli import device_tables, model_tables, output, rollout_tables
from regatta_fleet.cli.connection import connected, examples, json_option
from regatta_fleet.client import FleetClient
from regatta_fleet.schemas import FleetEvent
from regatta_protocol.errors import Retryable

__all__ = ["events", "status"]

# An event is seen within this; the page asks as often.
_FOLLOW_PERIOD_S = 2.0
_SHOWN_ROLLOUTS = 5


@click.command(epilog=examples("regatta status", "regatta status --json | jq '.devices[] | {id, up}'"))
@json_option
@connected
def status(client: FleetClient, as_json: bool) -> None:
    """Show devices, models and rollouts."""
    fleet = client.status()
    if as_json:
        output.print_json(fleet)
        return
    now = time.time()
    up = sum(device.up for device in fleet.devices)
    broker = "up" if fleet.broker_up else "DOWN"
    output.line(
        f"Fleet {fleet.fleet}: {up} of {len(fleet.devices)} devices up; broker {fleet.broker} {broker}; "
        f"Regatta {fleet.version}",
        "" if fleet.broker_up else "bad",
    )
    output.line()
    output.print_table(device_tables.devices(fleet.devices, now))
    output.line()
    output.print_table(model_tables.models(fleet.models))
    output.line()
    newest = sorted(fleet.rollouts, key=lambda rollout: rollout.created_at, reverse=True)
    output.print_table(rollout_tables.rollouts(newest[:_SHOWN_ROLLOUTS], now))
    if len(newest) > _SHOWN_ROLLOUTS:
        output.line(f"  {len(newest) - _SHOWN_ROLLOUTS} older: `regatta rollout list`", "dim")


@click.command(epilog=examples("regatta events", "regatta events --follow", "regatta events --follow --json"))
@click.option("--follow", "-f", is_flag=True, help="Go on with new events until Ctrl-C.")
@json_option
@connected
def events(client: FleetClient, follow: bool, as_json: bool) -> None:
    """Show what happened in the fleet, oldest first.

    With --follow, --json prints one JSON document a line.
    """
    if not follow:
        found = client.events()
        if as_json:
            output.print_json(found)
        else:
            output.print_table(rollout_tables.events(found))
        return
    for event in follow_events(client):
        if as_json:
            click.echo(event.model_dump_json())
        else:
            device = f" {event.device}:" if event.device else ""
            output.line(f"{figures.clock(event.at)}  {event.kind}{device} {event.text}")


def follow_events(client: FleetClient, period_s: float = _FOLLOW_PERIOD_S) -> Iterator[FleetEvent]:
    """Yield each event once, first those there are; says once when the server is away and once when it is back."""
    since: float | None = None
    at_newest: set[str] = set()
    away = False
    while True:
        try:
            found = client.events(since)
        except Retryable as err:
            if since is None:
                raise
            if not away:
                output.hint(f"{err}; waiting for it")
            away = True
            found = ()
        else:
            if away:
                output.hint("the server answers again")
            away = False
        for event in sorted(found, key=lambda event: event.at):
            key = event.model_dump_json()
            # The server may answer "from since on" or "after since": what was shown at that very moment is known.
            if key in at_newest or (since is not None and event.at < since):
                continue
            if since is None or event.at > since:
                since, at_newest = event.at, set()
            at_newest.add(key)
            yield event
        time.sleep(period_s)
