"""`regatta-agent quarantine`: which delegates are left alone because they crashed, and how to try them again."""

from __future__ import annotations

import json
from pathlib import Path

import click

from regatta_agent.cli.options import as_json, check_state_folder, folder_options, print_json, print_table
from regatta_agent.config import load_config
from regatta_agent.disk.quarantine_file import QuarantineFile
from regatta_runtimes.worker.quarantine import MAX_STRIKES

__all__ = ["quarantine"]


@click.command()
@click.argument("action", type=click.Choice(["show", "clear"]), default="show")
@folder_options
@as_json
def quarantine(
    action: str, config_path: Path | None, state_dir: Path | None, run_dir: Path | None, json_output: bool
) -> None:
    """Show which delegates crashed with which model here, or forget that, so that the next race tries them again.

    A delegate that crashed or hung twice in a row with a model is left alone until its library, its options, the
    runtime or the model changes.

    \b
    Examples:
      regatta-agent quarantine
      regatta-agent quarantine clear
    """
    config = load_config(config_path, {"state_dir": state_dir, "run_dir": run_dir})
    check_state_folder(config.state_dir)
    file = QuarantineFile(config.state_dir)
    before = file.load()
    if action == "clear":
        file.clear()
    if json_output:
        print_json({"pairs": json.loads(before.model_dump_json())["pairs"], "cleared": action == "clear"})
        return
    if not before.pairs:
        click.echo("nothing has crashed here")
        return
    print_table(
        ["CANDIDATE", "CRASHES", "TRIED AGAIN", "LAST"],
        [
            (one.candidate, str(one.count), "yes" if one.count < MAX_STRIKES else "no", one.reason)
            for one in before.pairs.values()
        ],
    )
    if action == "clear":
        click.echo(f"\nforgotten: {len(before.pairs)}. The next race tries them again")
