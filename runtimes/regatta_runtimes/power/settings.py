"""What a user may set about power: the section `[power]` of agent.toml, and the same in a race's spec."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["CommandSettings", "MqttSettings", "PowerSettings"]


class CommandSettings(BaseModel):
    """A program of the user's that prints one number each time it is run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: tuple[str, ...] = Field(min_length=1, max_length=64)  # program and arguments; no shell
    unit: Literal["W", "mW"] = "W"
    period_s: float = Field(default=1.0, ge=0.02, le=3600)  # how often the meter has a new figure
    timeout_s: float = Field(default=2.0, gt=0, le=60)
    coverage: str = Field(default="what the command measures", min_length=1, max_length=200)


class MqttSettings(BaseModel):
    """A smart plug, or any meter, that tells its power by MQTT."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(min_length=1, max_length=255)
    port: int = Field(default=1883, ge=1, le=65_535)
    topic: str = Field(min_length=1, max_length=512, pattern=r"^[^+#\x00]+$")
    field: str = Field(default="", max_length=200)  # where in the JSON: ENERGY.Power; empty: the payload is the number
    unit: Literal["W", "mW"] = "W"
    period_s: float = Field(default=10.0, ge=0.02, le=3600)  # how often it tells: Tasmota's TelePeriod
    user: str | None = Field(default=None, min_length=1, max_length=256)
    password_file: Path | None = None
    ca_file: Path | None = None  # who signs the broker's certificate; without it there is no TLS
    coverage: str = Field(default="all that the plug feeds", min_length=1, max_length=200)

    @model_validator(mode="after")
    def _password_has_a_user(self) -> MqttSettings:
        if self.password_file is not None and self.user is None:
            raise ValueError("password_file goes with user, and there is none")
        return self


class PowerSettings(BaseModel):
    """Which sensor, and its calibration. By default the best that the board has, as it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sensor: str | None = Field(default=None, min_length=1, max_length=200)  # one of the board's, by its name
    command: CommandSettings | None = None
    mqtt: MqttSettings | None = None
    factor: float = Field(default=1.0, gt=0, le=100)  # milliwatts = factor · figure + offset_mw
    offset_mw: float = Field(default=0.0, ge=-100_000, le=100_000)

    @model_validator(mode="after")
    def _one_source(self) -> PowerSettings:
        given = [name for name in ("sensor", "command", "mqtt") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are given: keep one")
        return self
