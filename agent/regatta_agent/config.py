"""What an operator may set, in `/etc/regatta/agent.toml`; every key has a default, and an unknown key is an error.

Command-line flags and the variables REGATTA_STATE_DIR and REGATTA_RUN_DIR come before the file.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from regatta_agent.serving.settings import ServingSettings
from regatta_protocol.durable import read_bounded
from regatta_protocol.errors import Misuse, Rejected
from regatta_protocol.ids import parse_model_ref
from regatta_protocol.update_window import MAX_WINDOWS, UpdateWindowField
from regatta_runtimes.power.settings import PowerSettings

__all__ = ["DEFAULT_CONFIG_PATH", "AgentConfig", "load_config"]

DEFAULT_CONFIG_PATH = Path("/etc/regatta/agent.toml")
_MAX_CONFIG_BYTES = 65_536
# Heartbeats are acknowledged and so keep the connection; with a keepalive above their period no PINGREQ is sent at all.
_METERED = {"telemetry_period_s": 1800.0, "heartbeat_period_s": 1800.0, "keepalive_s": 2400}
_Windows = Annotated[
    tuple[UpdateWindowField, ...], BeforeValidator(lambda given: (given,) if isinstance(given, str) else given)
]


def _names_a_version(text: str) -> str:
    try:
        parse_model_ref(text)
    except Rejected as err:
        raise ValueError(str(err)) from err
    return text


class AgentConfig(BaseModel):
    """The agent's settings. Times are seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state_dir: Path = Path("/var/lib/regatta-agent")
    run_dir: Path = Path("/run/regatta-agent")
    sysroot: Path = Path("/")  # where /proc, /sys and /dev are looked for; a fake tree stands for a board in tests
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    link: Literal["unmetered", "metered"] = "unmetered"  # metered: other defaults for the next three (docs/traffic.md)
    telemetry_period_s: float = Field(default=5.0, gt=0, le=86_400)  # between batches
    heartbeat_period_s: float = Field(default=1800.0, gt=0, le=86_400)  # the device says that it is there after so long
    keepalive_s: int = Field(default=60, ge=5, le=43_000)  # the broker gives a device up after 1.5 times as long
    update_window: _Windows = Field(default=(), max_length=MAX_WINDOWS)  # before the fleet's (docs/update-window.md)
    max_attempts: int = Field(default=8, ge=1, le=100)  # per version
    backoff_base_s: float = Field(default=2.0, gt=0, le=3600)
    backoff_cap_s: float = Field(default=300.0, gt=0, le=3600)
    race_budget_s: float = Field(default=20.0, gt=0, le=3600)
    delegate_files: tuple[Path, ...] = Field(default=(), max_length=64)  # more delegates: docs/accelerators.md
    race_threads: tuple[int, ...] | None = Field(default=None, max_length=8)  # None: 1, 2, 4 up to the cores
    disk_reserve_bytes: int = Field(default=16 * 1024 * 1024, ge=0)  # left free when models are downloaded
    outbox_max_bytes: int = Field(default=8 * 1024 * 1024, ge=65_536)  # telemetry kept while offline
    outbox_max_age_s: float = Field(default=30 * 86_400.0, ge=60)  # and how long, in time that the agent runs
    keep_previous: int = Field(default=1, ge=0, le=16)  # versions kept beside the running one
    pinned: tuple[Annotated[str, AfterValidator(_names_a_version)], ...] = Field(default=(), max_length=64)  # and these
    disk_budget_bytes: int = Field(default=0, ge=0)  # within it, older versions are kept too (docs/reliability.md)
    batch_folder: Path | None = None  # below it the fleet's batch jobs write results; unset: it may start none
    batch_inputs: tuple[Path, ...] = Field(default=(), max_length=16)  # the only folders that such jobs may read
    batch_results: Literal["never", "unmetered", "always"] = "unmetered"  # when the fleet may pull such results
    serving: ServingSettings = ServingSettings()  # TCP, shared memory, queues and batches (docs/serving.md)
    power: PowerSettings = PowerSettings()  # which sensor, and the user's own (docs/power.md)

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_link(cls, given: dict[str, Any]) -> dict[str, Any]:
        return {**_METERED, **given} if isinstance(given, dict) and given.get("link") == "metered" else given


def load_config(path: Path | None, overrides: Mapping[str, Any] | None = None) -> AgentConfig:
    """Return the settings of the file, with the environment's and then `overrides` before it.

    Args:
        path: None takes /etc/regatta/agent.toml where it exists.
        overrides: fields given on the command line; those that are None count as not given.

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
    settings.update({key: value for key, value in (overrides or {}).items() if value is not None})
    try:
        return AgentConfig.model_validate(settings)
    except ValidationError as err:
        first = err.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = ", ".join(sorted(_fields(first["loc"][:-1])))
            raise Misuse(f"{source}: there is no key {key!r}; the keys are {known}") from err
        raise Misuse(f"{source}: key {key!r}: {first['msg']}") from err


def _fields(section: Sequence[int | str]) -> Iterable[str]:
    """Return the keys that a section of the file may have."""
    model: type[BaseModel] = AgentConfig
    for name in section:
        options = get_args(model.model_fields[str(name)].annotation) or (model.model_fields[str(name)].annotation,)
        model = next(option for option in options if isinstance(option, type) and issubclass(option, BaseModel))
    return model.model_fields


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
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as err:
        raise Misuse(f"{path} is not TOML: {err}") from err
