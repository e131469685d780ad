"""Writes the pages of this folder that are made from the programs: `./run docs`. A test holds them equal.

It stands outside of the packages, because it reads both programs, and those never import each other.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

__all__ = ["pages"]

_FOLDER = Path(__file__).parent
_VARIABLES = ("REGATTA_HOME", "REGATTA_URL", "REGATTA_TOKEN", "REGATTA_STATE_DIR", "REGATTA_RUN_DIR")

_AGENT_INTRODUCTION = """\
# `regatta-agent`: the device's command line

This page is made from the program (`./run docs`); a test keeps them equal. The fleet's program is
[`regatta`](cli.md).

- Results go to standard output, hints to standard error; `--json` prints one document.
- `status` and `why` read the state folder: they work when the agent is down, and say whether it runs.
- Shell completion: `eval "$(_REGATTA_AGENT_COMPLETE=bash_source regatta-agent)"` (or `zsh_source`, `fish_source`).
- Every key of the configuration file (`/etc/regatta/agent.toml`) is shown by `regatta-agent config check`.
"""

_AGENT_ENVIRONMENT = {
    "REGATTA_STATE_DIR": "Where the agent keeps its state, as `--state-dir`.",
    "REGATTA_RUN_DIR": "Where the models' sockets are, as `--run-dir`.",
}


def pages() -> dict[Path, str]:
    """Return the text of each generated page by its path."""
    for name in _VARIABLES:
        os.environ.pop(name, None)  # the defaults that the pages show are the programs', not this shell's
    from regatta_agent.cli.commands import cli
    from regatta_agent.core.states import render_mermaid
    from regatta_fleet.cli.exit_codes import MEANINGS
    from regatta_fleet.cli.reference import page, regatta_page
    from regatta_fleet.optimize.recipe.models import recipe_schema

    codes = {code: text for code, text in MEANINGS.items() if code not in (3, 4)}  # those two are a rollout's
    return {
        _FOLDER / "cli.md": regatta_page(),
        _FOLDER / "agent-cli.md": page(cli, _AGENT_INTRODUCTION, _AGENT_ENVIRONMENT, codes),
        _FOLDER / "agent-states.md": render_mermaid(),
        _FOLDER / "recipe.schema.json": json.dumps(recipe_schema(), indent=2) + "\n",
    }


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
