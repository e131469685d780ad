"""The daemon's own way in: settings and logging, then the loop; the modules that it never uses are kept out before.

What `leave_out` and `deferred` are told decides what lies in memory for months: docs/footprint.md has the figures.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from regatta_agent.process.bytecode import start_lean
from regatta_agent.process.holding_back import forgive, hold_back
from regatta_agent.process.unloaded import deferred, leave_out

__all__ = ["DEFERRED", "LEFT_OUT", "OPTIONS", "DaemonOptions", "daemon_options", "run_daemon"]

LEFT_OUT = {  # what libraries import, and this process never calls
    "urllib.request": "paho asks it for a proxy, and only where PySocks is installed; brings http and email, 1 MB",
    "importlib.metadata": "pydantic looks for plug-ins with it, which are off here; brings email, zipfile, csv, 1.5 MB",
    "pydantic.json_schema": "the fleet describes its HTTP API with it, 0.3 MB",
}
DEFERRED = {  # what the standard library and pydantic import in case they need it
    "locale": "subprocess asks it for the encoding of text, and is given bytes, 0.2 MB",
    "secrets": "pydantic compares secrets with it; brings hmac",
}
OPTIONS = {"--config": "config_path", "--state-dir": "state_dir", "--run-dir": "run_dir"}


@dataclass(frozen=True)
class DaemonOptions:
    """What `regatta-agent run` was given; None takes the default."""

    config_path: Path | None = None
    state_dir: Path | None = None
    run_dir: Path | None = None


def daemon_options(argv: Sequence[str]) -> DaemonOptions | None:
    """Return the options of `run [--config F] [--state-dir D] [--run-dir D]`; None for any other command line."""
    names, values = argv[1::2], argv[2::2]
    if argv[:1] != ["run"] or len(names) != len(values) or not set(names) <= set(OPTIONS):
        return None
    return DaemonOptions(**{OPTIONS[name]: Path(value) for name, value in zip(names, values, strict=True)})


def run_daemon(options: DaemonOptions) -> None:
    """Run the agent until SIGTERM or SIGINT.

    Raises:
        Misuse: when the settings are wrong, the device is not enrolled, or another agent runs on its state.
    """
    start_lean()  # before anything is imported that would only be imported again
    hold_back()
    os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"  # the wire's validators are not a stranger's to change
    os.environ.pop("MALLOC_ARENA_MAX", None)  # the unit sets it for this process: workers infer with many threads
    with deferred(DEFERRED):
        leave_out(LEFT_OUT)
        from regatta_agent.bootstrap import run_agent
        from regatta_agent.config import load_config

    config = load_config(options.config_path, {"state_dir": options.state_dir, "run_dir": options.run_dir})
    if not logging.getLogger().handlers:
        logging.basicConfig(
            level=config.log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s"
        )
    run_agent(config)
    forgive()
