"""`regatta device`: tokens for enrolling, the devices there are, one in detail, and taking one away."""

from __future__ import annotations

import time

import click

from regatta_fleet import figures, verdicts
from regatta_fleet.cli import device_tables, output, race_tables
from regatta_fleet.cli.connection import connected, examples, json_option
from regatta_fleet.cli.parsing import DURATION
from regatta_fleet.client import FleetClient
from regatta_fleet.schemas import DeviceDetail, TokenRequest
from regatta_protocol.errors import Rejected
from regatta_protocol.ids import parse_device_id

__all__ = ["device"]


@click.group()
def device() -> None:
    """Enrol, list, show and revoke devices."""


@device.command(
    epilog=examples(
        "regatta device token",
        "regatta device token --device cam-1 --group lab --valid 10m",
        'ssh pi "regatta-agent enroll $(regatta device token --device pi)"',
    )
)
@click.option("--device", "device_id", help="Only this device id may use it [default: the device chooses].")
@click.option("--group", default="default", show_default=True, help="The group that the device joins.")
@click.option("--valid", type=DURATION, default="1h", show_default=True, help="How long it can be used.")
@json_option
@connected
def token(client: FleetClient, device_id: str | None, group: str, valid: float, as_json: bool) -> None:
    """Make a one-time enrolment token.

    The token alone goes to standard output. It is shown once: the server keeps only its hash.
    """
    created = client.create_token(_token_request(device_id, group, valid))
    if as_json:
        output.print_json(created)
        return
    click.echo(created.token)
    output.hint(
        f"valid once, until {figures.clock(created.expires_at)}. On the device: "
        "`regatta-agent enroll TOKEN`, then `regatta-agent run`"
    )


@device.command("list", epilog=examples("regatta device list", "regatta device list --group lab --json"))
@click.option("--group", help="Only the devices of this group.")
@json_option
@connected
def list_devices(client: FleetClient, group: str | None, as_json: bool) -> None:
    """List the devices with what each serves."""
    found = tuple(one for one in client.devices() if group is None or one.group == group)
    if as_json:
        output.print_json(found)
    else:
        output.print_table(device_tables.devices(found, time.time()))


@device.command(epilog=examples("regatta device show cam-1", "regatta device show cam-1 --json"))
@click.argument("device_id", metavar="ID")
@json_option
@connected
def show(client: FleetClient, device_id: str, as_json: bool) -> None:
    """Show a device: its board, its models, and each race with every candidate and why it lost."""
    detail = client.device(parse_device_id(device_id))
    if as_json:
        output.print_json(detail)
    else:
        print_device(detail, time.time())


@device.command(epilog=examples("regatta device revoke cam-1", "regatta device revoke cam-1 --yes"))
@click.argument("device_id", metavar="ID")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@json_option
@connected
def revoke(client: FleetClient, device_id: str, yes: bool, as_json: bool) -> None:
    """Take a device out of the fleet for good: its connection is cut, and its certificates are refused from now on."""
    known = parse_device_id(device_id)
    client.device(known)  # one that is not there is told at once
    if not yes:
        click.confirm(f"Revoke {known}? It must enrol anew to come back", abort=True, err=True)
    client.revoke(known)
    if as_json:
        output.print_json({"device": known, "revoked": True})
    else:
        output.line(f"{known} is revoked")


def print_device(detail: DeviceDetail, now: float) -> None:
    """Print a device with its board, models and races."""
    facts = (
        ("state", verdicts.up_since(detail, now)),
        ("group", detail.group),
        ("enrolled", figures.clock(detail.enrolled_at)),
        ("last seen", figures.age(detail.last_seen, now)),
        ("agent", detail.agent_version or "unknown"),
        ("received", f"{figures.size(detail.bytes_received)} over MQTT"),
        *([("lost", f"{detail.dropped_items:,} items of telemetry")] if detail.dropped_items else []),
        ("generation", f"{detail.reported_generation} of {detail.desired_generation}"),
        *device_tables.board_facts(detail.board),
    )
    output.line(f"Device {detail.id}")
    for name, value in facts:
        output.line(f"  {name:<13} {value}")
    output.line()
    output.print_table(device_tables.device_models(detail))
    stages = device_tables.stages(detail)
    if stages.rows:
        output.line()
        output.print_table(stages)
    for race in race_tables.races(detail):
        output.line()
        output.print_table(race)


def _token_request(device_id: str | None, group: str, valid_s: float) -> TokenRequest:
    from pydantic import ValidationError

    try:
        return TokenRequest(
            device=None if device_id is None else parse_device_id(device_id), group=group, valid_s=valid_s
        )
    except ValidationError as err:
        wrong = err.errors(include_url=False, include_input=False)[0]["loc"][0]
        if wrong == "group":
            raise Rejected(f"group {group!r} is not valid: groups are 1 to 64 of a-z, 0-9 and '-'") from err
        raise Rejected(f"a token cannot be valid for {valid_s:g} s: it is for more than 0 and at most 30d") from err
