"""`regatta policy`: what groups of devices choose their placements by, instead of the bundle's policy."""

from __future__ import annotations

from typing import Any

import click

from regatta_fleet import figures
from regatta_fleet.cli import output, rollout_tables
from regatta_fleet.cli.connection import connected, examples, json_option
from regatta_fleet.client import FleetClient
from regatta_protocol.ids import ModelName, parse_model_name
from regatta_runtimes.choice.policy_options import given_policy, options_text, policy_options

__all__ = ["policy"]

_GROUP = click.argument("group", metavar="GROUP|all")
_MODEL = click.option("--model", "model_name", metavar="NAME", help="Only for this model [default: every model].")


@click.group()
def policy() -> None:
    """Set what groups of devices choose their placements by.

    What is set here is laid over the policy of each bundle, field by field: first what is set for all, then what is
    set for the group; for a model before for every model. Devices judge what they serve again: when their last race
    answers for the new policy nothing is raced, otherwise they race while they serve on.
    """


@policy.command(
    "set",
    epilog=examples(
        "regatta policy set battery --objective energy --max-power 3W",
        "regatta policy set all --model digits --max-p99 5ms",
        "regatta policy set lab --max-memory none  # lifts the bundle's limit",
    ),
)
@_GROUP
@_MODEL
@policy_options
@json_option
@connected
def set_policy(
    client: FleetClient,
    /,
    group: str,
    model_name: str | None,
    as_json: bool,
    **options: Any,  # noqa: ANN401 - the policy's options
) -> None:
    """Set a policy for a group, or for all devices.

    It takes the place of what was set for the same group and model; what is not given is as in the bundle. `none` takes
    a limit away.
    """
    given = given_policy(options)
    if not given.model_fields_set:
        raise click.UsageError("give what the policy shall be, for example --objective energy")
    found = client.set_policy(group, _parsed(model_name), given)
    if as_json:
        output.print_json(found.model_dump(mode="json", exclude_unset=True))
        return
    output.line(f"{_whom(group, model_name)}: {options_text(found.policy)}", "good")
    if found.devices:
        judging = figures.counted(found.devices, "device")
        output.hint(f"it holds for the models on {judging}; `regatta-agent why MODEL` on one explains")
    else:
        output.hint("no device that it is for is assigned a model yet: it holds for those to come")


@policy.command("show", epilog=examples("regatta policy show", "regatta policy show battery --json"))
@click.argument("group", metavar="[GROUP|all]", required=False)
@json_option
@connected
def show(client: FleetClient, group: str | None, as_json: bool) -> None:
    """Show what is set, for every group or one; the most particular line of a device holds."""
    found = tuple(one for one in client.policies() if group in (None, one.group))
    if as_json:
        output.print_json({"policies": [one.model_dump(mode="json", exclude_unset=True) for one in found]})
    else:
        output.print_table(rollout_tables.policies(found))


@policy.command("clear", epilog=examples("regatta policy clear battery", "regatta policy clear all --model digits"))
@_GROUP
@_MODEL
@json_option
@connected
def clear(client: FleetClient, group: str, model_name: str | None, as_json: bool) -> None:
    """Take away what was set for a group (and a model); the bundles' policies hold again."""
    client.clear_policy(group, _parsed(model_name))
    if as_json:
        output.print_json({"group": group, "model": model_name, "cleared": True})
    else:
        output.line(f"{_whom(group, model_name)}: cleared")


def _parsed(model_name: str | None) -> ModelName | None:
    return None if model_name is None else parse_model_name(model_name)


def _whom(group: str, model_name: str | None) -> str:
    devices = "all devices" if group == "all" else f"group {group}"
    return devices if model_name is None else f"{devices}, model {model_name}"
