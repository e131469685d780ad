"""`regatta-agent run`: the daemon, in the foreground as systemd wants it."""

from __future__ import annotations

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
    from regatta_agent.process.daemon import DaemonOptions, run_daemon

    run_daemon(DaemonOptions(config_path, state_dir, run_dir))
