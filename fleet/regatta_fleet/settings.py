"""What an operator may set for a server, checked before anything starts. Unknown keys are refused.

What a fleet must keep over restarts (its id, ports, token) is no setting but lies in its home (home.py).
"""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

__all__ = ["HOME_VARIABLE", "Settings", "default_home"]

HOME_VARIABLE = "REGATTA_HOME"
_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63}){0,9}\.?")


def default_home() -> Path:
    """Return where a fleet lies when nobody says otherwise: $REGATTA_HOME, or ~/.local/share/regatta."""
    named = os.environ.get(HOME_VARIABLE)
    return Path(named) if named else Path.home() / ".local" / "share" / "regatta"


class Settings(BaseModel):
    """How to run one fleet's server."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    home: Path = Field(default_factory=default_home)
    host: str = "127.0.0.1"  # where the device API and the broker listen; the operator API stays on loopback
    advertise: str | None = None  # the name or address that devices use; None: kept from before, else `host`
    operator_port: int | None = Field(default=None, ge=1, le=65_535)  # None: kept from before, else a free one
    device_port: int | None = Field(default=None, ge=1, le=65_535)
    broker_port: int | None = Field(default=None, ge=1, le=65_535)
    database: str | None = None  # an SQLAlchemy URL; None: SQLite in the home
    broker: str | None = None  # mqtts://host:port of a broker that others run; None: a private Mosquitto child
    broker_ca: Path | None = None  # of that broker; None: the fleet's own authority
    broker_certificate: Path | None = None  # how the server names itself there; None: made by the fleet's authority
    broker_key: Path | None = None

    @field_validator("host")
    @classmethod
    def _is_address(cls, value: str) -> str:
        ipaddress.ip_address(value)
        return value

    @field_validator("advertise")
    @classmethod
    def _is_host(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            address = ipaddress.ip_address(value)
        except ValueError:
            if _HOST_NAME.fullmatch(value) is None:
                raise ValueError(f"{value!r} is neither a host name nor an address") from None
            return value
        if address.is_unspecified:
            raise ValueError(f"devices cannot connect to {value}: give a name or address of this machine")
        return value

    @field_validator("broker")
    @classmethod
    def _is_broker(cls, value: str | None) -> str | None:
        if value is not None:
            parts = urlsplit(value)
            if parts.scheme != "mqtts" or not parts.hostname or parts.path not in ("", "/"):
                raise ValueError(f"{value!r} is no broker: write mqtts://HOST:PORT")
        return value

    @property
    def external_broker(self) -> tuple[str, int] | None:
        """Host and port of the broker that others run, or None."""
        if self.broker is None:
            return None
        parts = urlsplit(self.broker)
        return parts.hostname or "", parts.port or 8883  # 8883 is IANA's secure-mqtt
