"""`regatta-agent run`: the daemon, in the foreground as systemd wants it."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import click

from regatta_agent.cli.options import folder_options

__all__ = ["run"]


@click.command()
@folder_options
def run(config_path: Path | None, state_dir: Path | None, run_dir: Path | None) -> None:
    """Run the agent until SIGTERM or Ctrl-C.

    \b
    Examples:
      regatta-agent run
      regatta-agent run --state-dir ./state --run-dir ./run
    """
    from regatta_agent.bootstrap import run_agent
    from regatta_agent.config import load_config

    config = load_config(config_path, {"state_dir": state_dir, "run_dir": run_dir})
    if not logging.getLogger().handlers:
        logging.basicConfig(
            level=config.log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s"
        )
    run_agent(config)
