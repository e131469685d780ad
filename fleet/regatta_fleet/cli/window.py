"""`regatta window`: when groups of devices take new versions into service."""

from __future__ import annotations

import click

from regatta_fleet import figures
from regatta_fleet.cli import output, rollout_tables
from regatta_fleet.cli.connection import connected, examples, json_option
from regatta_fleet.client import FleetClient
from regatta_protocol.errors import Rejected
from regatta_protocol.update_window import MAX_WINDOWS, parse_window

__all__ = ["window"]

_GROUP = click.argument("group", metavar="GROUP|all")


@click.group()
def window() -> None:
    """Set when groups of devices take new versions into service.

    A window is `[DAYS ]HH:MM-HH:MM[ ZONE]`: DAYS are those on which it begins, as mon, sat,sun or mon-fri; it goes over
    midnight when it ends before it begins; without ZONE it is in each device's own time zone. Devices download ahead
    and wait with the race, and with taking over, until one of their windows is open. A group's windows take the place
    of those for all, and what a device sets itself (update_window in agent.toml) comes before both.
    """


@window.command(
    "set",
    epilog=examples(
        "regatta window set all 02:00-05:00",
        'regatta window set shops "mon-sat 22:00-05:00 Europe/Berlin" "sun 00:00-24:00 Europe/Berlin"',
        "regatta window set lab 00:00-24:00  # at any time, whatever is set for all",
    ),
)
@_GROUP
@click.argument("windows", metavar="WINDOW...", nargs=-1, required=True)
@json_option
@connected
def set_windows(client: FleetClient, group: str, windows: tuple[str, ...], as_json: bool) -> None:
    """Set the update windows of a group, or of all devices whose group has none.

    They take the place of those before. Devices that wait look at their new windows at once.
    """
    if len(windows) > MAX_WINDOWS:
        raise Rejected(
            f"{len(windows)} windows are too many: at most {MAX_WINDOWS}; days can be put together, as sat,sun"
        )
    for one in windows:
        parse_window(one)
    found = client.set_windows(group, windows)
    if as_json:
        output.print_json(found)
        return
    output.line(f"{_whom(group)}: {', '.join(found.windows)}", "good")
    going = figures.counted(found.devices, "device")
    output.hint(f"it holds for {going}; `regatta rollout start … --ignore-window` is for what is urgent")


@window.command("show", epilog=examples("regatta window show", "regatta window show shops --json"))
@click.argument("group", metavar="[GROUP|all]", required=False)
@json_option
@connected
def show(client: FleetClient, group: str | None, as_json: bool) -> None:
    """Show the update windows that are set, for every group or one."""
    found = tuple(one for one in client.windows() if group in (None, one.group))
    if as_json:
        output.print_json(found)
    else:
        output.print_table(rollout_tables.windows(found))


@window.command("clear", epilog=examples("regatta window clear shops", "regatta window clear all"))
@_GROUP
@json_option
@connected
def clear(client: FleetClient, group: str, as_json: bool) -> None:
    """Take away what was set for a group; what is set for all holds again, and else devices wait for no window."""
    client.clear_windows(group)
    if as_json:
        output.print_json({"group": group, "cleared": True})
    else:
        output.line(f"{_whom(group)}: cleared")


def _whom(group: str) -> str:
    return "all devices" if group == "all" else f"group {group}"
