"""`regatta-agent install` and `uninstall`: the systemd service of this machine, shown first with --dry-run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from regatta_agent.cli.options import as_json, print_json

if TYPE_CHECKING:
    from regatta_provisioning.install import InstallStep

__all__ = ["install", "uninstall"]

_root_option = click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("/"),
    help="Write below this folder, for an image being built.",
)


@click.command()
@click.option("--dry-run", is_flag=True, help="Show what would be done, with the files' contents.")
@click.option("--no-start", is_flag=True, help="Enable the service, but do not start it now.")
@_root_option
@as_json
def install(dry_run: bool, no_start: bool, root: Path, json_output: bool) -> None:
    """Install the agent as a hardened systemd service with a user of its own (needs root).

    \b
    Examples:
      regatta-agent install --dry-run
      sudo regatta-agent install
    """
    from regatta_provisioning.install import apply, describe, plan_install

    steps = plan_install(start="enable" if no_start else "enable-now")
    if json_output:
        print_json(_as_values(steps))
    elif dry_run:
        click.echo(describe(steps, root))
    if not dry_run:
        apply(steps, root, (lambda _line: None) if json_output else click.echo)


@click.command()
@click.option("--dry-run", is_flag=True, help="Show what would be done.")
@click.option("--purge", is_flag=True, help="Delete the state and the identity too: the device must enrol again.")
@_root_option
@as_json
def uninstall(dry_run: bool, purge: bool, root: Path, json_output: bool) -> None:
    """Undo what install did; state and identity stay unless --purge is given (needs root).

    \b
    Examples:
      regatta-agent uninstall --dry-run
      sudo regatta-agent uninstall --purge
    """
    from regatta_provisioning.install import apply, describe, plan_uninstall

    steps = plan_uninstall(purge=purge)
    if json_output:
        print_json(_as_values(steps))
    elif dry_run:
        click.echo(describe(steps, root))
    if not dry_run:
        apply(steps, root, (lambda _line: None) if json_output else click.echo)


def _as_values(steps: list[InstallStep]) -> list[dict[str, object]]:
    return [
        {**asdict(step), "kind": str(step.kind), "path": str(step.path or ""), "content": step.content.decode()}
        for step in steps
    ]
