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


_DECISIONS_INTRODUCTION = """\
# Decisions

Choices that a newcomer would question, each on half a page: context, options, choice, cost. This list is made from
their titles (`./run docs`); a test keeps them equal.

The numbers that are missing were never used by a decision that landed. They stay free, so that no number ever means two
things: a new decision takes the one after the greatest.

| number | decision |
|--:|---|
"""


def _decisions() -> str:
    """Return the index of adr/: each file's number and title, as its first line has them."""
    rows = []
    for path in sorted((_FOLDER / "adr").glob("[0-9]*.md")):
        number, _, title = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ").partition(". ")
        rows.append(f"| {number} | [{title}]({path.name}) |\n")
    return _DECISIONS_INTRODUCTION + "".join(rows)


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
        _FOLDER / "adr" / "README.md": _decisions(),
        _FOLDER / "recipe.schema.json": json.dumps(recipe_schema(), indent=2) + "\n",
    }


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
