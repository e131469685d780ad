"""What an operator may set about serving: the section `[serving]` of agent.toml. Imports no numpy.

Beyond loopback nothing listens without TLS and a token; a section that asks for it is refused, with the key named.
"""

from __future__ import annotations

import ipaddress
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from regatta_protocol.ids import ModelNameField

__all__ = ["GRPC_EXTRA", "NonFinite", "ServingSettings", "TlsFiles", "is_loopback", "split_address"]

NonFinite = Literal["reject", "pass"]
GRPC_EXTRA = "pip install 'regatta-edge[grpc]'"


class TlsFiles(BaseModel):
    """A certificate chain and its key, both PEM."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    certificate: Path
    key: Path


class ServingSettings(BaseModel):
    """How every model of this device is served."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tcp: dict[ModelNameField, str] = Field(default_factory=dict, max_length=256)  # model -> HOST:PORT
    grpc: bool = False  # every model answers gRPC too, on RUN_DIR/MODEL.grpc (extra grpc)
    grpc_tcp: dict[ModelNameField, str] = Field(default_factory=dict, max_length=256)  # model -> HOST:PORT, for gRPC
    tls_certificate: Path | None = None  # with tls_key: TCP is TLS
    tls_key: Path | None = None
    token_file: Path | None = None  # its first line is the bearer token that TCP clients give
    shared_memory: bool = False  # the system shared-memory extension, for clients on this machine
    non_finite: NonFinite = "reject"  # inputs that hold NaN or infinity
    queue_length: int = Field(default=32, ge=1, le=4096)  # requests of one model waiting or running
    connections: int = Field(default=256, ge=1, le=20_000)  # of one model; more are refused
    max_batch: int = Field(default=16, ge=1, le=256)  # rows computed together where that pays; 1: never
    batch_delay_us: int = Field(default=0, ge=0, le=1_000_000)  # how long a request may wait for others to join it

    @property
    def tls(self) -> TlsFiles | None:
        """The TLS files, or None for plain TCP."""
        if self.tls_certificate is None or self.tls_key is None:
            return None
        return TlsFiles(certificate=self.tls_certificate, key=self.tls_key)

    @model_validator(mode="after")
    def _check(self) -> ServingSettings:
        if (self.tls_certificate is None) != (self.tls_key is None):
            given, missing = ("tls_certificate", "tls_key") if self.tls_key is None else ("tls_key", "tls_certificate")
            raise ValueError(f"{given} is set and {missing} is not: set both")
        guards = {"tls_certificate": self.tls_certificate, "tls_key": self.tls_key, "token_file": self.token_file}
        missing_keys = ", ".join(key for key, value in guards.items() if value is None)
        addresses = {f"tcp.{model}": address for model, address in self.tcp.items()}
        addresses |= {f"grpc_tcp.{model}": address for model, address in self.grpc_tcp.items()}
        taken: dict[str, str] = {}
        for key, address in addresses.items():
            host, port = split_address(address)
            if port == 0:
                raise ValueError(f"{key} is {address!r}: give a port of 1 to 65535, for clients must know it")
            if missing_keys and not is_loopback(host):
                raise ValueError(
                    f"{key} is {address!r}, which is not on loopback, and {missing_keys} not set: "
                    "set what is missing, or listen on 127.0.0.1"
                )
            if (other := taken.setdefault(address, key)) != key:
                raise ValueError(f"{key} and {other} are both {address!r}: give each a port of its own")
        self._check_grpc()
        return self

    def _check_grpc(self) -> None:
        if self.grpc_tcp and not self.grpc:
            raise ValueError("grpc_tcp is set and grpc is not: set grpc = true")
        if self.grpc and (missing := [name for name in ("grpc", "google.protobuf") if not _is_installed(name)]):
            raise ValueError(f"grpc is true and {', '.join(missing)} cannot be imported: {GRPC_EXTRA}")


def _is_installed(module: str) -> bool:
    """Return whether the module is there, without loading it."""
    try:
        return find_spec(module) is not None
    except ImportError:  # the package that it is in is not
        return False


def split_address(address: str) -> tuple[str, int]:
    """Return the IP address and the port of `HOST:PORT` or `[HOST]:PORT`.

    Raises:
        ValueError: when it is neither.
    """
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        ipaddress.ip_address(host)
        number = int(port)
    except ValueError as err:
        raise ValueError(f"{address!r} is no address: write HOST:PORT with an IP address, as 127.0.0.1:8000") from err
    if not 0 <= number < 65_536:
        raise ValueError(f"{address!r} has no port of 1 to 65535")
    return host, number


def is_loopback(host: str) -> bool:
    """Return whether the IP address is reached from this machine only."""
    return ipaddress.ip_address(host).is_loopback
