"""`regatta-agent config` and `regatta-agent states`: what is set, and the states of a version as a diagram."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from regatta_agent.cli.options import as_json, folder_options, print_json

__all__ = ["config", "states"]


@click.group()
def config() -> None:
    """Check the settings."""


@config.command()
@folder_options
@as_json
def check(config_path: Path | None, state_dir: Path | None, run_dir: Path | None, json_output: bool) -> None:
    """Read the settings as `run` would, and print them; a wrong key is named.

    \b
    Examples:
      regatta-agent config check
      regatta-agent config check --config ./agent.toml --json
    """
    from regatta_agent.config import load_config

    settings = asdict(load_config(config_path, {"state_dir": state_dir, "run_dir": run_dir}))
    settings = json.loads(json.dumps(settings, default=str))
    if json_output:
        print_json(settings)
        return
    for key, value in settings.items():
        click.echo(f"{key} = {json.dumps(value)}")


@click.command()
def states() -> None:
    """Print docs/agent-states.md: the states of a version as a Mermaid diagram.

    \b
    Examples:
      regatta-agent states > docs/agent-states.md
    """
    from regatta_agent.core.states import render_mermaid

    click.echo(render_mermaid(), nl=False)
