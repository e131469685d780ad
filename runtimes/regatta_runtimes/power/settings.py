"""What a user may set about power: the section `[power]` of agent.toml, and in specs of races and workers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from regatta_protocol.bounds import Bounds, Strict

__all__ = ["CommandSettings", "MqttSettings", "PowerSettings"]


@dataclass(frozen=True, kw_only=True)
class CommandSettings(Strict):
    """A program of the user's that prints one number each time it is run."""

    run: Annotated[tuple[str, ...], Bounds(min_length=1, max_length=64)]  # program and arguments; no shell
    unit: Literal["W", "mW"] = "W"
    period_s: Annotated[float, Bounds(ge=0.02, le=3600)] = 1.0  # how often the meter has a new figure
    timeout_s: Annotated[float, Bounds(gt=0, le=60)] = 2.0
    coverage: Annotated[str, Bounds(min_length=1, max_length=200)] = "what the command measures"


@dataclass(frozen=True, kw_only=True)
class MqttSettings(Strict):
    """A smart plug, or any meter, that tells its power by MQTT."""

    host: Annotated[str, Bounds(min_length=1, max_length=255)]
    port: Annotated[int, Bounds(ge=1, le=65_535)] = 1883
    topic: Annotated[str, Bounds(min_length=1, max_length=512, pattern=r"^[^+#\x00]+$")]
    field: Annotated[str, Bounds(max_length=200)] = ""  # in the JSON: ENERGY.Power; empty: the payload is the number
    unit: Literal["W", "mW"] = "W"
    period_s: Annotated[float, Bounds(ge=0.02, le=3600)] = 10.0  # how often it tells: Tasmota's TelePeriod
    user: Annotated[str, Bounds(min_length=1, max_length=256)] | None = None
    password_file: Path | None = None
    ca_file: Path | None = None  # who signs the broker's certificate; without it there is no TLS
    coverage: Annotated[str, Bounds(min_length=1, max_length=200)] = "all that the plug feeds"

    def __post_init__(self) -> None:
        if self.password_file is not None and self.user is None:
            raise ValueError("password_file goes with user, and there is none")


@dataclass(frozen=True, kw_only=True)
class PowerSettings(Strict):
    """Which sensor, and its calibration. By default the best that the board has, as it is."""

    sensor: Annotated[str, Bounds(min_length=1, max_length=200)] | None = None  # one of the board's, by its name
    command: CommandSettings | None = None
    mqtt: MqttSettings | None = None
    factor: Annotated[float, Bounds(gt=0, le=100)] = 1.0  # milliwatts = factor · figure + offset_mw
    offset_mw: Annotated[float, Bounds(ge=-100_000, le=100_000)] = 0.0

    def __post_init__(self) -> None:
        given = [name for name in ("sensor", "command", "mqtt") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are given: keep one")
