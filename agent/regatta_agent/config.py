"""What an operator may set, in `/etc/regatta/agent.toml`; every key has a default, and an unknown key is an error.

Command-line flags and the variables REGATTA_STATE_DIR and REGATTA_RUN_DIR come before the file.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from regatta_agent.serving.settings import ServingSettings
from regatta_protocol.bounds import Bounds, Strict
from regatta_protocol.durable import read_bounded
from regatta_protocol.errors import Misuse, Rejected
from regatta_protocol.ids import parse_model_ref
from regatta_protocol.plain import read
from regatta_protocol.update_window import MAX_WINDOWS, parse_window
from regatta_runtimes.power.settings import PowerSettings

__all__ = ["DEFAULT_CONFIG_PATH", "AgentConfig", "load_config", "read_settings"]

DEFAULT_CONFIG_PATH = Path("/etc/regatta/agent.toml")
_MAX_CONFIG_BYTES = 65_536
# Heartbeats are acknowledged and so keep the connection; with a keepalive above their period no PINGREQ is sent at all.
_METERED = {"telemetry_period_s": 1800.0, "heartbeat_period_s": 1800.0, "keepalive_s": 2400}
_Seconds = Annotated[float, Bounds(gt=0, le=3600)]
_Period = Annotated[float, Bounds(gt=0, le=86_400)]


@dataclass(frozen=True, kw_only=True)
class AgentConfig(Strict):
    """The agent's settings. Times are seconds."""

    state_dir: Path = Path("/var/lib/regatta-agent")
    run_dir: Path = Path("/run/regatta-agent")
    sysroot: Path = Path("/")  # where /proc, /sys and /dev are looked for; a fake tree stands for a board in tests
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    link: Literal["unmetered", "metered"] = "unmetered"  # metered: other defaults for the next three (docs/traffic.md)
    telemetry_period_s: _Period = 5.0  # between batches
    heartbeat_period_s: _Period = 1800.0  # it says that it is there after so long
    keepalive_s: Annotated[int, Bounds(ge=5, le=43_000)] = 60  # the broker gives a device up after 1.5 times as long
    update_window: Annotated[tuple[str, ...], Bounds(max_length=MAX_WINDOWS)] = ()  # before the fleet's
    max_attempts: Annotated[int, Bounds(ge=1, le=100)] = 8  # per version
    backoff_base_s: _Seconds = 2.0
    backoff_cap_s: _Seconds = 300.0
    race_budget_s: _Seconds = 20.0
    delegate_files: Annotated[tuple[Path, ...], Bounds(max_length=64)] = ()  # more delegates: docs/accelerators.md
    race_threads: Annotated[tuple[int, ...], Bounds(max_length=8)] | None = None  # None: 1, 2, 4 up to the cores
    disk_reserve_bytes: Annotated[int, Bounds(ge=0)] = 16 * 1024 * 1024  # left free when models are downloaded
    outbox_max_bytes: Annotated[int, Bounds(ge=65_536)] = 8 * 1024 * 1024  # telemetry kept while offline
    outbox_max_age_s: Annotated[float, Bounds(ge=60)] = 30 * 86_400.0  # and how long, in time that the agent runs
    keep_previous: Annotated[int, Bounds(ge=0, le=16)] = 1  # versions kept beside the running one
    pinned: Annotated[tuple[str, ...], Bounds(max_length=64)] = ()  # and these
    disk_budget_bytes: Annotated[int, Bounds(ge=0)] = 0  # within it, older versions are kept too (docs/reliability.md)
    batch_folder: Path | None = None  # below it the fleet's batch jobs write results; unset: it may start none
    batch_inputs: Annotated[tuple[Path, ...], Bounds(max_length=16)] = ()  # the only folders that such jobs may read
    batch_results: Literal["never", "unmetered", "always"] = "unmetered"  # when the fleet may pull such results
    serving: ServingSettings = field(default_factory=ServingSettings)  # TCP, queues and batches (docs/serving.md)
    power: PowerSettings = field(default_factory=PowerSettings)  # which sensor, and the user's own (docs/power.md)

    def __post_init__(self) -> None:
        for key, texts, parse in (
            ("update_window", self.update_window, parse_window),
            ("pinned", self.pinned, parse_model_ref),
        ):
            try:
                for text in texts:
                    parse(text)
            except Rejected as err:
                raise ValueError(f"{key}: {err}") from err


def read_settings(settings: Mapping[str, Any], source: str) -> AgentConfig:
    """Return the settings with the defaults of their link.

    Raises:
        Rejected: when a key is unknown or wrong; the text begins with `source` and names the key.
    """
    given = {**_METERED, **settings} if settings.get("link") == "metered" else dict(settings)
    if isinstance(given.get("update_window"), str):  # one may be written without a list
        given["update_window"] = [given["update_window"]]
    return read(AgentConfig, given, source)


def load_config(path: Path | None, overrides: Mapping[str, Path | None] | None = None) -> AgentConfig:
    """Return the settings of the file, with the environment's and then `overrides` before it.

    Args:
        path: None takes /etc/regatta/agent.toml where it exists.
        overrides: folders given on the command line; those that are None count as not given.

    Raises:
        Misuse: when the file cannot be read, or a key is unknown or wrong; the text names file and key.
    """
    source = path or DEFAULT_CONFIG_PATH
    settings: dict[str, Any] = {}
    if path is not None or DEFAULT_CONFIG_PATH.exists():
        settings = _read_toml(source)
    for key, variable in (("state_dir", "REGATTA_STATE_DIR"), ("run_dir", "REGATTA_RUN_DIR")):
        if os.environ.get(variable):
            settings[key] = os.environ[variable]
    settings.update({key: str(value) for key, value in (overrides or {}).items() if value is not None})
    try:
        return read_settings(settings, str(source))
    except Rejected as err:
        raise Misuse(str(err)) from err


def _read_toml(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):  # imported here: a device without a settings file does not keep it in memory
        import tomllib
    else:
        import tomli as tomllib

    try:
        text = read_bounded(path, _MAX_CONFIG_BYTES).decode()
        return tomllib.loads(text)
    except OSError as err:
        raise Misuse(f"{path} cannot be read: {err.strerror}") from err
    except Rejected as err:
        raise Misuse(f"{err}: give the settings file, as /etc/regatta/agent.toml") from err
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as err:
        raise Misuse(f"{path} is not TOML: {err}") from err
